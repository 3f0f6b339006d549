-- Add messages to a conversation, which begins here where there is none yet; or say how one of them has come out.
--
-- KEYS[1]  the conversation's record: title, created_at, updated_at, head, size
-- KEYS[2]  its messages: id by "<number> <status> <parent> <JSON>", where a root's parent is empty
-- KEYS[3]  the owner's conversations: id by the millisecond of the last message
-- KEYS[4]  what stands for the conversation when it has been deleted
-- ARGV[1]  JSON: id, begins (whether it may be begun), adds (whether messages may be added to what is there), title
--          (for one that has none), retention (milliseconds), messages, size and conversations (the most of each)
-- ARGV[2…] id, status, parent and JSON of each message
--
-- Returns kept; or, where nothing was changed, why: deleted, also where it may not be begun or added to; or what there
-- is too much of: messages, size or conversations.
--
-- A message that is there stays as it is, unless it is in progress, or the new one is whole: so what is said twice
-- changes nothing, and of an answer that was given up too early its writer still has the last word.

local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if redis.call('EXISTS', KEYS[4]) == 1 then return 'deleted' end
local there = redis.call('EXISTS', KEYS[1]) == 1
local count = redis.call('HLEN', KEYS[2])
local size = tonumber(redis.call('HGET', KEYS[1], 'size') or 0)
local new = 0
for i = 2, #ARGV, 4 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then new = new + 1 end
end

if not there then
  if not ask.begins then return 'deleted' end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ask.retention)
  if redis.call('ZCARD', KEYS[3]) >= ask.conversations then return 'conversations' end
elseif new > 0 then
  if not ask.adds then return 'deleted' end
  if count + new > ask.messages then return 'messages' end
  if size >= ask.size then return 'size' end
end

for i = 2, #ARGV, 4 do
  local id, status, parent, message = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local old = redis.call('HGET', KEYS[2], id)
  local number
  if not old then
    count = count + 1
    number = count
    redis.call('HSET', KEYS[1], 'head', id)
  elseif string.find(old, '^%d+ in_progress ') or status == 'completed' or status == 'incomplete' then
    number = string.match(old, '^%d+')
    size = size - #old
  end
  if number then
    local value = number .. ' ' .. status .. ' ' .. parent .. ' ' .. message
    redis.call('HSET', KEYS[2], id, value)
    size = size + #value
  end
end

redis.call('HSETNX', KEYS[1], 'created_at', now)
if ask.title then redis.call('HSETNX', KEYS[1], 'title', ask.title) end
redis.call('HSET', KEYS[1], 'updated_at', now, 'size', size)
redis.call('PEXPIRE', KEYS[1], ask.retention)
redis.call('PEXPIRE', KEYS[2], ask.retention)
redis.call('ZADD', KEYS[3], now, ask.id)
redis.call('PEXPIRE', KEYS[3], ask.retention)
return 'kept'
