-- Forget a run: nothing says any more that it was there.
--
-- KEYS[1]  the run's tombstone
-- KEYS[2]  its idempotency key's record
-- ARGV[1]  the run's id

redis.call('DEL', KEYS[1])
if redis.call('HGET', KEYS[2], 'run') == ARGV[1] then
  redis.call('DEL', KEYS[2])
end
return 1
