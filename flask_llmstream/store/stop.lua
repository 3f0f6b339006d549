-- Ask the writer of a run to stop it: a nudge, which it finds now, and a flag, which it finds when it renews its lease.
--
-- KEYS[1]  the run's record
-- ARGV[1]  the run's id
-- ARGV[2]  prefix of all keys
--
-- A Redis that is full has no room for the flag; the nudge needs none.

local is = redis.call('HMGET', KEYS[1], 'process', 'last')
if not is[1] or is[2] then return 0 end
redis.call('PUBLISH', ARGV[2] .. 'process:' .. is[1], 'stop ' .. ARGV[1])
redis.pcall('HSET', KEYS[1], 'stop', 1)
return 1
