-- Have a run that waits be looked after later: by then it is to be in its queue. One process does so now.
--
-- KEYS[1]  the run's record
-- KEYS[2]  the leases of all runs
-- ARGV[1]  the run's id
-- ARGV[2]  milliseconds until then
--
-- Returns 1 where that is for the caller to do; 0 where it is not due (another has been at it), or does not wait, or was
-- stopped and is to be ended.

local WAITING = 1e13  -- see admit.lua
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 'inf')
if due >= WAITING then due = due - WAITING end
local is = redis.call('HMGET', KEYS[1], 'waiting', 'stop')
if due > now or not is[1] or is[2] then return 0 end
redis.call('ZADD', KEYS[2], WAITING + now + ARGV[2], ARGV[1])
return 1
