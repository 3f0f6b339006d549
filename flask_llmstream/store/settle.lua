-- Keep the result of one input of a batch, once.
--
-- KEYS[1]  a bit for each input whose result is kept
-- KEYS[2]  the results, a line of JSON each
-- KEYS[3]  the counts: completed, failed, prompt, completion
-- KEYS[4]  the inputs
-- KEYS[5]  the payer's tokens in the window: window, n
-- ARGV[1]  the input's index
-- ARGV[2]  its line
-- ARGV[3]  completed or failed
-- ARGV[4]  tokens of the prompt
-- ARGV[5]  tokens of the completion
-- ARGV[6]  milliseconds for which all of it is kept from now on
-- ARGV[7]  milliseconds of the window in which the payer's tokens are counted; 0 where they are not
--
-- Returns 1, or 0 where it has a result already.

if redis.call('SETBIT', KEYS[1], ARGV[1], 1) == 1 then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HINCRBY', KEYS[3], ARGV[3], 1)
redis.call('HINCRBY', KEYS[3], 'prompt', ARGV[4])
redis.call('HINCRBY', KEYS[3], 'completion', ARGV[5])
for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[6]) end

local length = tonumber(ARGV[7])
if length > 0 then
  local time = redis.call('TIME')
  local window = math.floor((time[1] * 1000 + math.floor(time[2] / 1000)) / length)
  local n = redis.call('HGET', KEYS[5], 'window') == tostring(window) and redis.call('HGET', KEYS[5], 'n') or 0
  redis.call('HSET', KEYS[5], 'window', window, 'n', n + ARGV[4] + ARGV[5])
  redis.call('PEXPIRE', KEYS[5], length)
end
return 1
