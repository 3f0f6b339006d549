-- Delete a conversation. What stands for it then keeps an answer that ends later from bringing it back.
--
-- KEYS[1]  the conversation's record
-- KEYS[2]  its messages
-- KEYS[3]  the owner's conversations
-- KEYS[4]  what stands for the conversation when it has been deleted
-- KEYS[5]  its slot: the run that answers it
-- ARGV[1]  the conversation's id
-- ARGV[2]  milliseconds in which such an answer may end
--
-- Returns {whether it was there, also for one's own repeat; the run that answers it, or nothing}.

local there = redis.call('EXISTS', KEYS[1]) + redis.call('EXISTS', KEYS[4]) > 0
if there then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('SET', KEYS[4], 1, 'PX', ARGV[2])
end
return {there and 1 or 0, redis.call('GET', KEYS[5]) or ''}
