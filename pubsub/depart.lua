-- Remove members from the presence set of a channel; safe to repeat.
--
-- KEYS  1 members   2 their order   3 version   4 entries of the generation in the partition
-- ARGV  1 now (empty: Redis's time)   2 channel   3 its address   4 PUBLISH or SPUBLISH
--       5 generation: only what was entered under it (empty: whatever is there)   6 how long the
--       version of an empty set is kept, in ms   then the sessions
-- Returns how many were removed.

local now = clock(ARGV[1])
local removed = 0
for i = 7, #ARGV do
  local session = ARGV[i]
  local member = redis.call('HGET', KEYS[1], session)
  -- The node may have entered it anew, under its next generation.
  if member and (ARGV[5] == '' or string.sub(member, 1, 16) == ARGV[5]) then
    redis.call('HDEL', KEYS[1], session)
    redis.call('ZREM', KEYS[2], session)
    announce(ARGV[4], ARGV[3], 'leave', count(KEYS[3], now), string.sub(member, 17))
    removed = removed + 1
  end
  redis.call('SREM', KEYS[4], ARGV[2] .. '\0' .. session)
end
if removed > 0 and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
end
return removed
