-- Share the partitions among the nodes that archive: renew what this one has, give up what is more
-- than its share, take what is free or has lapsed.
--
-- KEYS  1 nodes by when their lease ends   2 claims: partition -> when it ends and whose it is
-- ARGV  1 now (empty: Redis's time)   2 this node   3 how long lease and claims last, in ms
--       4 number of partitions   5 1: the node leaves
-- Returns the partitions that the node has.

local now = clock(ARGV[1])
local me, lasts, count = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local names, mine, free = {}, {}, {}
for i = 1, count do
  names[i] = whole(i - 1)
end
for i, held in ipairs(redis.call('HMGET', KEYS[2], unpack(names))) do
  local till, whose = string.match(held or '', '^(%d+) (.*)$')
  if whose == me then
    mine[#mine + 1] = names[i]
  elseif not till or tonumber(till) <= now then
    free[#free + 1] = names[i]
  end
end

if ARGV[5] == '1' then
  redis.call('ZREM', KEYS[1], me)
  if #mine > 0 then
    redis.call('HDEL', KEYS[2], unpack(mine))
  end
  return {}
end

redis.call('ZADD', KEYS[1], whole(now + lasts), me)
local lapsed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', whole(now), 'LIMIT', 0, 64)
if #lapsed > 0 then
  redis.call('ZREM', KEYS[1], unpack(lapsed))
end
local share = math.ceil(count / redis.call('ZCARD', KEYS[1]))
while #mine > share do
  redis.call('HDEL', KEYS[2], table.remove(mine))
end
while #mine < share and #free > 0 do
  mine[#mine + 1] = table.remove(free, 1)
end
for _, name in ipairs(mine) do
  redis.call('HSET', KEYS[2], name, whole(now + lasts) .. ' ' .. me)
end
return mine
