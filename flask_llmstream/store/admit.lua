-- Admit a run, or say why not. All limits are asked before anything is changed, so a refusal costs nothing.
--
-- KEYS[1]  the idempotency key's record: run, fingerprint
-- KEYS[2]  the run's record
-- KEYS[3]  its log
-- KEYS[4]  the leases of all runs: id by the millisecond in which it lapses, or in which it is looked after that waits,
--          beyond all others
-- KEYS[5]  the owner's live runs: id by the millisecond of its start
-- KEYS[6]  the owner's runs that are kept: id by the millisecond until which it is
-- KEYS[7]  the owner's feed
-- KEYS[8]  the slot of the conversation: the run that has it
-- KEYS[9]  the owner's starts in the window: window, n
-- KEYS[10] the owner's tokens in the window: window, n
-- ARGV[1]  JSON: id, fingerprint, prefix, process, hold and lease (milliseconds), conversation (whether it has one),
--          waiting (whether it is yet to be taken up), alone (whether no other process shares the store), max_runs, busy
--          (reject, replace or join), starts and tokens ({quota, milliseconds}), prompt (its tokens), max_tokens (that
--          its answer may have) and least (of these, where the quota leaves fewer)
-- ARGV[2]  what the run's record says of it
-- ARGV[3]  the first frame of its log
-- ARGV[4]  what the feed says, or nothing: where the run's conversation is to know of it first (see tell.lua)
--
-- Returns JSON: verdict (admitted, known, joined or busy), run, fingerprint; limit, retry (milliseconds) and live
-- where it is busy; max_tokens and replaced (the runs that were stopped) where it is admitted; standing, the limits as
-- they stand.
--
-- A slot is a lease: a run whose lease has lapsed holds none, whoever has yet to clear it away; one that waits to be
-- taken up always does. One that was stopped for another's sake holds none either, however long its writer takes.

local WAITING = 1e13
local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function leased(id)
  local lapses = redis.call('ZSCORE', KEYS[4], id)
  return lapses and tonumber(lapses) > now
end

local function stop(id)
  local record = ask.prefix .. 'run:' .. id
  local is = redis.call('HMGET', record, 'process', 'waiting')
  if is[1] or is[2] then
    redis.call('HSET', record, 'stop', 1)  -- first, since a Redis that is full refuses this and would not the rest
  end
  if is[2] then
    redis.call('ZADD', KEYS[4], 0, id)  -- whoever looks next after what was left ends it
  elseif is[1] then
    redis.call('PUBLISH', ask.prefix .. 'process:' .. is[1], 'stop ' .. id)
  end
  redis.call('ZREM', KEYS[5], id)
end

-- How much of a quota is used in the window that now lies in, and which window that is.
local function used(key, quota)
  local window = math.floor(now / quota[2])
  local is = redis.call('HMGET', key, 'window', 'n')
  if tonumber(is[1]) ~= window then
    return 0, window
  end
  return tonumber(is[2]), window
end

local standing = {}
local function stands(name, quota, n, window)
  standing[#standing + 1] =
    {name = name, quota = quota[1], window = quota[2], used = n, reset = (window + 1) * quota[2] - now}
end

-- Redis may come to a request long after whoever sent it has given up.
if not ask.alone and redis.call('EXISTS', ask.prefix .. 'withdrawn:' .. ask.id) == 1 then
  return cjson.encode({verdict = 'known', run = ask.id, fingerprint = ask.fingerprint})
end

local holder = redis.call('HMGET', KEYS[1], 'run', 'fingerprint')
if holder[1] and holder[1] ~= ask.id then
  return cjson.encode({verdict = 'known', run = holder[1], fingerprint = holder[2]})
end
if holder[1] then  -- the answer to the first attempt was lost
  local reserved = redis.call('HGET', KEYS[2], 'reserved')
  return cjson.encode({
    verdict = 'admitted', run = ask.id, max_tokens = reserved and reserved - ask.prompt or ask.max_tokens
  })
end

-- The owner's live runs, the oldest first; asked for only where it matters, since there may be many.
local found
local function live()
  if found then return found end
  found = {}
  for _, id in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    if leased(id) then
      found[#found + 1] = id
    elseif redis.call('EXISTS', ask.prefix .. 'run:' .. id) == 0 then
      redis.call('ZREM', KEYS[5], id)
    end
  end
  return found
end

local starts, starts_window, tokens, tokens_window
if ask.starts then
  starts, starts_window = used(KEYS[9], ask.starts)
  stands('starts', ask.starts, starts, starts_window)
end
if ask.tokens then
  tokens, tokens_window = used(KEYS[10], ask.tokens)
  stands('tokens', ask.tokens, tokens, tokens_window)
end

local function busy(limit, retry)
  local said = {verdict = 'busy', limit = limit, retry = retry}
  if #live() > 0 then said.live = live() end
  if #standing > 0 then said.standing = standing end
  return cjson.encode(said)
end

local leaving, replaced = {}, {}
local function replace(id)
  leaving[id] = true
  replaced[#replaced + 1] = id
end

local talks = ask.conversation and redis.call('GET', KEYS[8])
if talks and leased(talks) and redis.call('ZSCORE', KEYS[5], talks) then
  if ask.busy == 'join' then
    return cjson.encode({verdict = 'joined', run = talks})
  elseif ask.busy == 'reject' then
    return busy('conversation')
  end
  replace(talks)
end
if ask.max_runs then
  for _, id in ipairs(live()) do
    if #live() - #replaced < ask.max_runs then break end
    if ask.busy ~= 'replace' then return busy('runs') end
    if not leaving[id] then replace(id) end
  end
end
if ask.starts and starts >= ask.starts[1] then
  return busy('starts', (starts_window + 1) * ask.starts[2] - now)
end

-- What is left may be less than the answer may have, but it must be enough for one that is of use.
local max_tokens = ask.max_tokens
local least = math.min(max_tokens, ask.least)
if ask.tokens then
  max_tokens = math.min(max_tokens, ask.tokens[1] - tokens - ask.prompt)
  if max_tokens < least then
    local given_back = 0
    for _, id in ipairs(live()) do
      local is = redis.call('HMGET', ask.prefix .. 'run:' .. id, 'reserved', 'window')
      if tonumber(is[2]) == tokens_window then given_back = given_back + is[1] end
    end
    if tokens - given_back + ask.prompt + least <= ask.tokens[1] then return busy('tokens') end
    return busy('tokens', (tokens_window + 1) * ask.tokens[2] - now)
  end
end

for _, id in ipairs(replaced) do stop(id) end
if ask.starts then
  redis.call('HSET', KEYS[9], 'window', starts_window, 'n', starts + 1)
  redis.call('PEXPIRE', KEYS[9], ask.starts[2])
end
local reserved = {}
if ask.tokens then
  local estimate = ask.prompt + max_tokens
  redis.call('HSET', KEYS[10], 'window', tokens_window, 'n', tokens + estimate)
  redis.call('PEXPIRE', KEYS[10], ask.tokens[2])
  reserved = {'reserved', estimate, 'window', tokens_window}
end
for _, limit in ipairs(standing) do
  limit.used = limit.used + (limit.name == 'starts' and 1 or ask.prompt + max_tokens)
end

redis.call('HSET', KEYS[1], 'run', ask.id, 'fingerprint', ask.fingerprint)
local holds = ask.waiting and 'waiting' or 'process'
redis.call('HSET', KEYS[2], 'about', ARGV[2], 'epoch', 1, holds, ask.waiting and 1 or ask.process, unpack(reserved))
redis.call('ZADD', KEYS[4], now + ask.lease + (ask.waiting and WAITING or 0), ask.id)
redis.call('ZADD', KEYS[5], now + time[2] % 1000 / 1000, ask.id)  -- which was the first of two in a millisecond, too
redis.call('ZADD', KEYS[6], now + ask.hold, ask.id)
if ARGV[4] ~= '' then
  local place = redis.call('XADD', KEYS[7], 'MAXLEN', '~', 500, '*', 'e', ARGV[4])
  redis.call('PUBLISH', KEYS[7], place .. ' ' .. ARGV[4])
end
if ask.conversation then
  redis.call('SET', KEYS[8], ask.id, 'PX', ask.hold)
end
if not ask.alone then  -- in a process of its own, nobody else reads the log, and what it admits it ends
  redis.call('XADD', KEYS[3], '1-1', 'e', ARGV[3])
  for i = 1, 7 do redis.call('PEXPIRE', KEYS[i], ask.hold) end
end

local said = {verdict = 'admitted', run = ask.id, max_tokens = max_tokens}
if #replaced > 0 then said.replaced = replaced end
if #standing > 0 then said.standing = standing end
return cjson.encode(said)
