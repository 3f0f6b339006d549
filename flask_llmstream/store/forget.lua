-- Forget a run. One that is live is stopped and kept from view; its end then drops what is left.
--
-- KEYS[1]  the idempotency key's record
-- KEYS[2]  the run's record
-- KEYS[3]  its log
-- KEYS[4]  the owner's runs that are kept
-- KEYS[5]  the owner's feed
-- KEYS[6]  the run's tombstone
-- ARGV[1]  the run's id
-- ARGV[2]  prefix of all keys
-- ARGV[3]  what the feed says
-- ARGV[4]  milliseconds that the feed lives

local is = redis.call('HMGET', KEYS[2], 'process', 'last')
if redis.call('HGET', KEYS[1], 'run') == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('DEL', KEYS[6])
redis.call('ZREM', KEYS[4], ARGV[1])
if not is[1] then return 0 end
if is[2] then
  redis.call('DEL', KEYS[2], KEYS[3])
else
  redis.call('HSET', KEYS[2], 'gone', 1, 'stop', 1)
end
redis.call('PUBLISH', ARGV[2] .. 'process:' .. is[1], 'forget ' .. ARGV[1])
local place = redis.call('XADD', KEYS[5], 'MAXLEN', '~', 500, '*', 'e', ARGV[3])
redis.call('PEXPIRE', KEYS[5], ARGV[4])
redis.call('PUBLISH', KEYS[5], place .. ' ' .. ARGV[3])
return 1
