-- Ask the writer of a run to stop it: a nudge, which it finds now, and a flag, which it finds when it renews its lease.
-- One that waits to be taken up has no writer: whoever asks ends it.
--
-- KEYS[1]  the run's record
-- KEYS[2]  the leases of all runs
-- ARGV[1]  the run's id
-- ARGV[2]  prefix of all keys
--
-- Returns 1 where its writer was asked, 2 where it waited and is to be ended, 0 where it has ended or is not known.
--
-- A Redis that is full has no room for the flag; the nudge needs none.

local is = redis.call('HMGET', KEYS[1], 'process', 'last', 'waiting')
if is[2] then return 0 end
if is[3] then
  redis.call('HSET', KEYS[1], 'stop', 1)
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
  return 2
end
if not is[1] then return 0 end
redis.call('PUBLISH', ARGV[2] .. 'process:' .. is[1], 'stop ' .. ARGV[1])
redis.pcall('HSET', KEYS[1], 'stop', 1)
return 1
