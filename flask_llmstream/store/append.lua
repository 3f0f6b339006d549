-- Add frames to the logs of several runs: what one process has to say, at once.
--
-- KEYS[i]   the log of the i-th run, and the channel of its frames
-- ARGV[1]   JSON, for each run: epoch of the writer, number of the event that its frame goes on from, number of the
--           frame's last event; and where the run's record does not have it yet, the record's name and the second in
--           which the run began
-- ARGV[i+1] its frame: payloads, a line each
--
-- Returns i and verdict, one after the other, for those whose frame is not added: 0 where the log is not there (any
-- more) up to the event that the frame goes on from, as after a restart or a fail-over that has lost something; -1
-- where it has the frame, or the events of a newer writer.
--
-- This is done for each token. Each argument and each part of a reply costs the client more than the JSON of a run.

local said = {}
local function refuse(i, verdict)
  said[#said + 1] = i
  said[#said + 1] = verdict
end
for i, about in ipairs(cjson.decode(ARGV[1])) do
  local log, frame = KEYS[i], ARGV[i + 1]
  local epoch, from, to, record, began = unpack(about)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local at_epoch, at = 0, 0
  if last then
    at_epoch, at = string.match(last[1], '(%d+)-(%d+)')
    at_epoch, at = tonumber(at_epoch), tonumber(at)
  end
  if at_epoch > epoch or (at_epoch == epoch and at >= to) then
    refuse(i, -1)
  elseif at_epoch < epoch or at < from then
    refuse(i, 0)
  else
    local id = string.format('%d-%d', epoch, to)
    redis.call('XADD', log, id, 'e', frame)
    redis.call('PUBLISH', log, id .. ' ' .. frame)
    if record and redis.call('EXISTS', record) == 1 then
      redis.call('HSET', record, 'started_at', began)
    end
  end
end
return said
