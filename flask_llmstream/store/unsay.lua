-- Take the two messages of a run out of their conversation, as if it had never been asked; where they are all that
-- there is, the conversation goes with them.
--
-- KEYS[1]  the conversation's record
-- KEYS[2]  its messages
-- KEYS[3]  the owner's conversations
-- ARGV[1]  the run's id
-- ARGV[2]  the conversation's id
--
-- Returns 1, or 0 where there is nothing of the run, or where something follows it.

local answer, question = ARGV[1], ARGV[1] .. '.q'
local asked = redis.call('HGET', KEYS[2], question)
if not asked then return 0 end
local values = redis.call('HVALS', KEYS[2])
for _, value in ipairs(values) do
  if string.match(value, '^%d+ %S+ (%S*) ') == answer then return 0 end
end

local size = #asked + #(redis.call('HGET', KEYS[2], answer) or '')
redis.call('HDEL', KEYS[2], question, answer)
if redis.call('HLEN', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('ZREM', KEYS[3], ARGV[2])
  return 1
end
redis.call('HINCRBY', KEYS[1], 'size', -size)
if redis.call('HGET', KEYS[1], 'head') == answer then
  redis.call('HSET', KEYS[1], 'head', string.match(asked, '^%d+ %S+ (%S*) '))
end
return 1
