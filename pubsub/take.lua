-- Take what can be taken once; safe to repeat with the same token.
--
-- KEYS  1 who took it: "<when it can be taken again, in ms> <token>"
-- ARGV  1 now (empty: Redis's time)   2 token   3 for how long it is taken, in ms
-- Returns 1 if it is this token's, 0 if somebody else took it before.

local now = clock(ARGV[1])
local till, token = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.+)$')
if till and tonumber(till) > now then
  return token == ARGV[2] and 1 or 0
end
redis.call('SET', KEYS[1], whole(now + tonumber(ARGV[3])) .. ' ' .. ARGV[2], 'PX', ARGV[3])
return 1
