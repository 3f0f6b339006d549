-- Admit a run, or name the run that its idempotency key already belongs to.
--
-- KEYS[1]  the idempotency key's record, one per owner and key
-- ARGV[1]  id of the run that asks
-- ARGV[2]  fingerprint of its request
-- ARGV[3]  milliseconds that the record lives if nobody ends the run
--
-- Returns {id, fingerprint} of the run that has the key now: the one that asked, if it was admitted.

local holder = redis.call('HMGET', KEYS[1], 'run', 'fingerprint')
if holder[1] then
  return holder
end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'fingerprint', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {ARGV[1], ARGV[2]}
