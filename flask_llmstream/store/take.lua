-- Take up a run that waits: from here on it is this process's.
--
-- KEYS[1]  the run's record
-- KEYS[2]  the leases of all runs
-- ARGV[1]  the run's id
-- ARGV[2]  the attempt that is meant
-- ARGV[3]  the process
-- ARGV[4]  milliseconds of its lease
--
-- Returns {verdict, what the record says of the run, epoch, attempts that failed, tokens that are reserved for it, what
-- earlier attempts have used}: taken (also for one's own repeat); or the verdict alone: missing, ended, stopped, held
-- (by another process) or stale (it waits for another attempt).

local is = redis.call(
  'HMGET', KEYS[1], 'about', 'epoch', 'last', 'waiting', 'attempt', 'stop', 'process', 'failures', 'reserved',
  'used'
)
if not is[1] then return {'missing'} end
if is[3] then return {'ended'} end
if (is[5] or '1') ~= ARGV[2] then return {'stale'} end
if not is[4] and is[7] ~= ARGV[3] then return {'held'} end
if is[6] then return {'stopped'} end
local time = redis.call('TIME')
redis.call('HDEL', KEYS[1], 'waiting')
redis.call('HSET', KEYS[1], 'process', ARGV[3])
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], ARGV[1])
return {'taken', is[1], tonumber(is[2]), tonumber(is[8] or '0'), tonumber(is[9] or '0'), is[10] or ''}
