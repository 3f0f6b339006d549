-- Forget a run. One that is live is stopped and kept from view; its end then drops what is left.
--
-- KEYS[1]  the idempotency key's record
-- KEYS[2]  the run's record
-- KEYS[3]  its log
-- KEYS[4]  the owner's runs that are kept
-- KEYS[5]  the owner's feed
-- KEYS[6]  the run's tombstone
-- KEYS[7]  the leases of all runs
-- ARGV[1]  the run's id
-- ARGV[2]  prefix of all keys
-- ARGV[3]  what the feed says
-- ARGV[4]  milliseconds that the feed lives
--
-- Returns 1; 2 where it waits to be taken up, so that it has no writer and whoever asks ends it; 0 where there is none.

local is = redis.call('HMGET', KEYS[2], 'process', 'last', 'waiting')
if redis.call('HGET', KEYS[1], 'run') == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('DEL', KEYS[6])
redis.call('ZREM', KEYS[4], ARGV[1])
if not (is[1] or is[2] or is[3]) then return 0 end
if is[2] then
  redis.call('DEL', KEYS[2], KEYS[3])
else
  redis.call('HSET', KEYS[2], 'gone', 1, 'stop', 1)
  if is[3] then redis.call('ZADD', KEYS[7], 0, ARGV[1]) end
end
if is[1] then redis.call('PUBLISH', ARGV[2] .. 'process:' .. is[1], 'forget ' .. ARGV[1]) end
local place = redis.call('XADD', KEYS[5], 'MAXLEN', '~', 500, '*', 'e', ARGV[3])
redis.call('PEXPIRE', KEYS[5], ARGV[4])
redis.call('PUBLISH', KEYS[5], place .. ' ' .. ARGV[3])
return not is[2] and is[3] and 2 or 1
