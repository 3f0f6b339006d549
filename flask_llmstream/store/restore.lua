-- Put a live run back that Redis has lost, as its writer remembers it.
--
-- KEYS[1]  the idempotency key's record
-- KEYS[2]  the run's record
-- KEYS[3]  its log
-- KEYS[4]  the leases of all runs
-- KEYS[5]  the owner's live runs
-- KEYS[6]  the owner's runs that are kept
-- KEYS[7]  the owner's feed
-- KEYS[8]  the slot of the conversation
-- ARGV[1]  JSON: id, fingerprint, epoch, process, hold and lease (milliseconds), conversation (whether it has one), began
--          (the second in which it did, or nothing), attempt
-- ARGV[2]  what the record says of it
-- ARGV[3]  id of the last event of its log
-- ARGV[4]  all events of its log, as one frame
-- ARGV[5]  what the feed says where the record was lost: whoever looked meanwhile was not told of the run
--
-- Returns 1, or 0 where it has another writer, or has ended.

local ask = cjson.decode(ARGV[1])
local is = redis.call('HMGET', KEYS[2], 'epoch', 'last')
if is[2] or (is[1] and tonumber(is[1]) ~= ask.epoch) then return 0 end
if not is[1] then
  redis.call('HSET', KEYS[2], 'about', ARGV[2], 'epoch', ask.epoch, 'process', ask.process, 'attempt', ask.attempt)
  redis.call('PEXPIRE', KEYS[2], ask.hold)
end
if ask.began ~= '' then redis.call('HSET', KEYS[2], 'started_at', ask.began) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HSETNX', KEYS[1], 'run', ask.id) == 1 then
  redis.call('HSET', KEYS[1], 'fingerprint', ask.fingerprint)
  redis.call('PEXPIRE', KEYS[1], ask.hold)
end
-- It may have been put back already, and gone on since: several find that it is lost.
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local at_epoch, at = 0, 0
if last then
  at_epoch, at = string.match(last[1], '(%d+)-(%d+)')
  at_epoch, at = tonumber(at_epoch), tonumber(at)
end
if at_epoch < ask.epoch or at < tonumber(string.match(ARGV[3], '-(%d+)')) then
  if at_epoch == ask.epoch then redis.call('DEL', KEYS[3]) end  -- which has a part
  redis.call('XADD', KEYS[3], ARGV[3], 'e', ARGV[4])
end
redis.call('PEXPIRE', KEYS[3], ask.hold)
redis.call('ZADD', KEYS[4], now + ask.lease, ask.id)
redis.call('PEXPIRE', KEYS[4], ask.hold)
redis.call('ZADD', KEYS[5], 'NX', now, ask.id)
redis.call('PEXPIRE', KEYS[5], ask.hold)
redis.call('ZADD', KEYS[6], now + ask.hold, ask.id)
redis.call('PEXPIRE', KEYS[6], ask.hold)
if ask.conversation then
  redis.call('SET', KEYS[8], ask.id, 'NX', 'PX', ask.hold)
end
if not is[1] then
  local place = redis.call('XADD', KEYS[7], 'MAXLEN', '~', 500, '*', 'e', ARGV[5])
  redis.call('PEXPIRE', KEYS[7], ask.hold)
  redis.call('PUBLISH', KEYS[7], place .. ' ' .. ARGV[5])
end
return 1
