-- Tell an owner's feed of a run that has begun, and whose conversation knows of it by now.
--
-- KEYS[1]  the owner's feed
-- ARGV[1]  what it says
-- ARGV[2]  milliseconds that the feed lives

local place = redis.call('XADD', KEYS[1], 'MAXLEN', '~', 500, '*', 'e', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', KEYS[1], place .. ' ' .. ARGV[1])
return 1
