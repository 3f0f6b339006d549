-- Remember that somebody has just read a run that lives elsewhere.
--
-- KEYS[1]  the run's record

local is = redis.call('HMGET', KEYS[1], 'epoch', 'last')
if is[1] and not is[2] then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'seen', time[1] * 1000 + math.floor(time[2] / 1000))
end
return 1
