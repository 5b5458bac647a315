-- Read kept events with after < offset < before, and where the channel stands.
--
-- KEYS  1 record   2 stream
-- ARGV  1 now (empty: Redis's time)   2 after   3 before (empty: no bound)   4 how many at most
--       5 1: the newest of them, 0: the oldest   6 1: also what is kept for repair only, 0: what
--       the rule shows
-- Returns nothing if there is no record, else {epoch, offset, check, floor, then for each event,
--       oldest first: entry id, entry}.

local now = clock(ARGV[1])
local record = load(KEYS[1], now)
if not record then
  return false
end
local answer = { record.epoch, whole(record.offset), record.check, whole(record.floor) }

local low, counted = record.floor, -1
if ARGV[6] == '0' then
  low, counted = shown(record, now)
end
low = math.max(low, tonumber(ARGV[2])) + 1
local high = record.offset
if ARGV[3] ~= '' then
  high = math.min(high, tonumber(ARGV[3]) - 1)
end
local limit = tonumber(ARGV[4])

if ARGV[5] == '1' then
  local found = {}
  if low <= high and limit > 0 then
    found = redis.call('XREVRANGE', KEYS[2], whole(high), whole(low), 'COUNT', limit)
  end
  for i = #found, 1, -1 do
    local _, number = place(found[i][1])
    if number > counted then
      answer[#answer + 1] = found[i][1]
      answer[#answer + 1] = found[i][2][2]
    end
  end
  return answer
end

local left = limit
while left > 0 and low <= high do
  local asked = math.max(left, 64)
  local found = redis.call('XRANGE', KEYS[2], whole(low), whole(high), 'COUNT', asked)
  for _, entry in ipairs(found) do
    local offset, number = place(entry[1])
    low = offset + 1
    if number > counted and left > 0 then
      left = left - 1
      answer[#answer + 1] = entry[1]
      answer[#answer + 1] = entry[2][2]
    end
  end
  if #found < asked then
    break
  end
end
return answer
