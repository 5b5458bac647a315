-- Keep a schedule from being fired, unless it was; safe to repeat.
--
-- KEYS  1, 2 generations of ids that were fired
-- ARGV  1 now (empty: Redis's time)   2 for how long they are remembered, in ms   3 id   4 serial of
--       the schedule
-- Returns 1 if it is never fired from now on, 0 if one of that id was.

local now = clock(ARGV[1])
local known, memory = recall(KEYS[1], KEYS[2], tonumber(ARGV[2]), { ARGV[3] }, now)
if known[1] and string.sub(known[1], 1, 1) ~= 'x' then
  return 0
end
remember(memory, { ARGV[3], 'x' .. ARGV[4] }, now)
return 1
