-- Carry out the end of a run: remember whose it was, and let its idempotency key live on as long as its log, or go.
--
-- KEYS[1]  the run's tombstone
-- KEYS[2]  its idempotency key's record
-- ARGV[1]  the run's id
-- ARGV[2]  digest of its owner
-- ARGV[3]  milliseconds that the tombstone lives
-- ARGV[4]  milliseconds that the key lives on; 0 drops it at once
--
-- A key that has passed to another run since is left alone.

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if redis.call('HGET', KEYS[2], 'run') == ARGV[1] then
  if ARGV[4] == '0' then
    redis.call('DEL', KEYS[2])
  else
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
  end
end
return 1
