-- Say how far the queue of a partition has come.
--
-- KEYS  1 queue   2 gaps
-- Returns {the highest id that it ever had, the lowest that it has (or empty), notes that wait}.

local highest = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      highest = info[i + 1]
    end
  end
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return { highest, first and first[1] or '', math.max(0, redis.call('HLEN', KEYS[2]) - 1) }
