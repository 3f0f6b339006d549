-- Renew the leases of the runs that a process writes; say which of them it is to leave or to stop, and which runs of
-- anybody's have been left.
--
-- KEYS[1]  the leases of all runs
-- ARGV[1]  prefix of all keys
-- ARGV[2]  milliseconds of a lease
-- ARGV[3]  the most lapsed runs to name, and of those that wait as many
-- ARGV[4…] id and epoch of each run
--
-- Returns {{id, verdict} …} for those that cannot go on as they do: stop, ended, fenced or missing; {id …}, the runs whose
-- lease has lapsed, and behind them those that wait and are to be looked after; and the millisecond by Redis' clock.

local WAITING = 1e13  -- see admit.lua
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local news = {}
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local is = redis.call('HMGET', ARGV[1] .. 'run:' .. id, 'epoch', 'last', 'stop')
  if not is[1] then
    news[#news + 1] = {id, 'missing'}
  elseif is[2] then
    news[#news + 1] = {id, 'ended'}
  elseif is[1] ~= ARGV[i + 1] then
    news[#news + 1] = {id, 'fenced'}
  else
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
    if is[3] then news[#news + 1] = {id, 'stop'} end
  end
end
local lapsed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[3])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], WAITING, WAITING + now, 'LIMIT', 0, ARGV[3])) do
  lapsed[#lapsed + 1] = id
end
return {news, lapsed, now}
