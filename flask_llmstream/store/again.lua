-- Have a run wait for its next attempt: a new epoch, in which what was said before is void.
--
-- KEYS[1]  the run's record
-- KEYS[2]  its log, and the channel of its frames
-- KEYS[3]  the leases of all runs
-- ARGV[1]  JSON: id, epoch (of its writer), lapsed (whether only a run whose lease has lapsed is meant), failed (whether
--          this attempt counts as one that failed), attempts (that it has in all), delay (milliseconds to the next one,
--          or 0), turn (milliseconds after which it is looked whether it is in its queue), used (JSON, or nothing: what
--          the model has consumed in all attempts so far), alone (whether no other process shares the store)
--
-- Returns {verdict, attempt, epoch}: waiting (also for one's own repeat); or the verdict alone: spent (no attempt is
-- left), stopped, leased, fenced, ended or missing, where nothing was changed.

local WAITING = 1e13  -- see admit.lua
local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local is = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'waiting', 'attempt', 'failures', 'stop', 'gone')
if not is[1] then return {'missing'} end
if is[2] then return {'ended'} end
local epoch, attempt = tonumber(is[1]), tonumber(is[4] or '1')
if is[3] and epoch == ask.epoch + 1 then return {'waiting', attempt, epoch} end
if epoch ~= ask.epoch or is[3] then return {'fenced'} end
if is[6] or is[7] then return {'stopped'} end
if ask.lapsed then
  local lapses = redis.call('ZSCORE', KEYS[3], ask.id)
  if lapses and tonumber(lapses) > now then return {'leased'} end
end
local failures = tonumber(is[5] or '0') + (ask.failed and 1 or 0)
if failures >= ask.attempts then return {'spent'} end

epoch, attempt = epoch + 1, attempt + 1
redis.call('HDEL', KEYS[1], 'process')
redis.call('HSET', KEYS[1], 'epoch', epoch, 'attempt', attempt, 'failures', failures, 'waiting', 1)
if ask.used ~= '' then redis.call('HSET', KEYS[1], 'used', ask.used) end
-- Where it is due at a certain time, it is looked for then before those that only wait for their turn.
redis.call('ZADD', KEYS[3], now + (ask.delay > 0 and ask.delay or WAITING + ask.turn), ask.id)
if not ask.alone then
  local frame = string.format('{"restarted":%d}\n{"status":"queued"}', attempt)
  local place = string.format('%d-2', epoch)
  redis.call('XADD', KEYS[2], place, 'e', frame)
  redis.call('PUBLISH', KEYS[2], place .. ' ' .. frame)
end
return {'waiting', attempt, epoch}
