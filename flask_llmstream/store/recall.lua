-- The messages that lead to one of a conversation.
--
-- KEYS[1]  the conversation's record
-- KEYS[2]  its messages: id by "<number> <status> <parent> <JSON>"
-- KEYS[3]  what stands for the conversation when it has been deleted
-- ARGV[1]  the message's id, or "head" for the last one
-- ARGV[2]  bytes after which no earlier ones are wanted
--
-- Returns {verdict, id of the message, the messages, the latest first}: found; or missing, deleted, or parent, where
-- there is no such message.

if redis.call('EXISTS', KEYS[3]) == 1 then return {'deleted', '', {}} end
if redis.call('EXISTS', KEYS[1]) == 0 then return {'missing', '', {}} end
local id = ARGV[1]
if id == 'head' then
  id = redis.call('HGET', KEYS[1], 'head') or ''
elseif redis.call('HEXISTS', KEYS[2], id) == 0 then
  return {'parent', '', {}}
end

local path, size, at = {}, 0, id
while at ~= '' and size <= tonumber(ARGV[2]) do
  local value = redis.call('HGET', KEYS[2], at)
  if not value then break end
  path[#path + 1] = value
  size = size + #value
  at = string.match(value, '^%d+ %S+ (%S*) ')
end
return {'found', id, path}
