-- Give a conversation another title, unless it is gone.
--
-- KEYS[1]  the conversation's record
-- ARGV[1]  the title
--
-- Returns whether it is there.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'title', ARGV[1])
return 1
