-- Carry out the end of a run, once: its last events, its state, the release of what it held, what it cost.
--
-- KEYS[1]  the idempotency key's record
-- KEYS[2]  the run's record
-- KEYS[3]  its log, and the channel of its frames
-- KEYS[4]  the leases of all runs
-- KEYS[5]  the owner's live runs
-- KEYS[6]  the owner's runs that are kept
-- KEYS[7]  the owner's feed
-- KEYS[8]  the slot of the conversation
-- KEYS[9]  the owner's tokens in the window: window, n
-- KEYS[10] the run's tombstone
-- KEYS[11] the payer's usage of the day: "<measure> <model>" by number
-- KEYS[12] the payers with a usage on that day
-- ARGV[1]  JSON: id, payer, owner_digest, epoch (the writer's), next (the epoch of the last event), lapsed (whether
--          only a run whose lease has lapsed is meant), kept (number of the last event in the log, as the writer knows
--          it), tail and last (ids in the log), retention and hold (milliseconds), lasting (whether the idempotency key
--          lives on), conversation (whether it has one), tokens (to be settled), usage ({model, measure, n} each),
--          usage_kept (milliseconds), alone (whether no other process shares the store), started_at (the second in which
--          the run began, where the writer knows it)
-- ARGV[2]  the frame of events that are not in the log yet; may be empty
-- ARGV[3]  the last event
-- ARGV[4]  what the feed says
--
-- Returns {verdict, id and payload of the last event}: ended, or already (also for one's own repeat); leased, fenced
-- or missing (the record, or a part of the log), where nothing was changed.

local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local is = redis.call('HMGET', KEYS[2], 'epoch', 'last', 'terminal', 'reserved', 'window', 'gone')
if not is[1] then
  if ask.lapsed then redis.call('ZREM', KEYS[4], ask.id) end
  return {'missing', '', ''}
end

local function enter(tokens, usage, sign)
  if is[4] and redis.call('HGET', KEYS[9], 'window') == is[5] then
    redis.call('HINCRBY', KEYS[9], 'n', tokens)
  end
  for _, item in ipairs(usage) do
    redis.call('HINCRBY', KEYS[11], item[2] .. ' ' .. item[1], sign * item[3] + 0)  -- never -0
  end
end

local function remember()
  redis.call('HSET', KEYS[2], 'entered', cjson.encode({tokens = ask.tokens, usage = ask.usage}))
end

if is[2] then
  -- Whoever closed it for its writer could only estimate what it used: the writer, back in touch, knows.
  local entered = not ask.lapsed and redis.call('HGET', KEYS[2], 'entered')
  if entered then
    entered = cjson.decode(entered)
    remember()
    enter(ask.tokens - entered.tokens, entered.usage, -1)
    enter(0, ask.usage, 1)
  end
  return {'already', is[2], is[3]}
end
if tonumber(is[1]) ~= ask.epoch then return {'fenced', '', ''} end
if ask.lapsed then
  local lapses = redis.call('ZSCORE', KEYS[4], ask.id)
  if lapses and tonumber(lapses) > now then return {'leased', '', ''} end
end

if ask.kept > 0 then
  local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  if not last or tonumber(string.match(last[1], '-(%d+)')) < ask.kept then return {'missing', '', ''} end
end

-- What the log has already, it refuses.
if ARGV[2] ~= '' and not redis.pcall('XADD', KEYS[3], ask.tail, 'e', ARGV[2]).err then
  redis.call('PUBLISH', KEYS[3], ask.tail .. ' ' .. ARGV[2])
end
if not ask.alone then
  redis.call('XADD', KEYS[3], ask.last, 'e', ARGV[3], 'end', 1)
  redis.call('PEXPIRE', KEYS[3], ask.retention)
  redis.call('PUBLISH', KEYS[3], ask.last .. ' ' .. ARGV[3])
end
redis.call('HSET', KEYS[2], 'epoch', ask.next, 'last', ask.last, 'terminal', ARGV[3], 'ended_at', now)
if ask.started_at then redis.call('HSET', KEYS[2], 'started_at', ask.started_at) end

redis.call('ZREM', KEYS[4], ask.id)
redis.call('ZREM', KEYS[5], ask.id)
if ask.conversation and redis.call('GET', KEYS[8]) == ask.id then redis.call('DEL', KEYS[8]) end
enter(ask.tokens - (is[4] or 0), ask.usage, 1)
if ask.lapsed then remember() end
if #ask.usage > 0 then
  redis.call('PEXPIRE', KEYS[11], ask.usage_kept)
  redis.call('SADD', KEYS[12], ask.payer)
  redis.call('PEXPIRE', KEYS[12], ask.usage_kept)
end

if is[6] then
  redis.call('DEL', KEYS[2], KEYS[3])
else
  redis.call('PEXPIRE', KEYS[2], ask.retention)
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now)
  redis.call('ZADD', KEYS[6], now + ask.retention, ask.id)
  redis.call('PEXPIRE', KEYS[6], ask.hold)
  redis.call('SET', KEYS[10], ask.owner_digest, 'PX', 2 * ask.retention)
end
if redis.call('HGET', KEYS[1], 'run') == ask.id then
  if ask.lasting and not is[6] then
    redis.call('PEXPIRE', KEYS[1], ask.retention)
  else
    redis.call('DEL', KEYS[1])
  end
end
if not is[6] then  -- of what was forgotten nothing more is told
  local place = redis.call('XADD', KEYS[7], 'MAXLEN', '~', 500, '*', 'e', ARGV[4])
  redis.call('PEXPIRE', KEYS[7], ask.hold)
  redis.call('PUBLISH', KEYS[7], place .. ' ' .. ARGV[4])
end
return {'ended', ask.last, ARGV[3]}
