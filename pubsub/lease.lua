-- Renew a node's lease, or take one; and claim what a node left behind whose lease has lapsed.
--
-- KEYS  1 leases   2 claims: <life> -> when the claim ends and whose it is; `last`: when any lease
--         was renewed last, in ms; `quiet`: until when nothing is claimed, in ms
-- ARGV  1 now (empty: Redis's time)   2 this life: <generation> <node>   3 how long a lease and a
--       claim last, in ms   4 1: take a lease, 0: renew it   5 the life that was claimed (or empty)
-- Returns {0} if the lease is gone or claimed; else {1, the life that this node has claimed or
--       empty}.

local now = clock(ARGV[1])
local me, lasts = ARGV[2], tonumber(ARGV[3])
if ARGV[4] == '0' then
  local till = tonumber(redis.call('ZSCORE', KEYS[1], me)) or 0
  if till == 0 or redis.call('HEXISTS', KEYS[2], me) == 1 then
    return { 0 }
  end
end
redis.call('ZADD', KEYS[1], whole(now + lasts), me)

-- When Redis was away, or asleep, leases have lapsed whose nodes live: they get the time to renew.
local last = tonumber(redis.call('HGET', KEYS[2], 'last')) or 0
local quiet = tonumber(redis.call('HGET', KEYS[2], 'quiet')) or 0
if now - last > lasts * 2 / 3 then
  quiet = now + lasts
  redis.call('HSET', KEYS[2], 'quiet', whole(quiet))
end
redis.call('HSET', KEYS[2], 'last', whole(now))

local function claim(life)
  local held = redis.call('HGET', KEYS[2], life)
  local till, whose = string.match(held or '', '^(%d+) (.*)$')
  if till and whose ~= me and tonumber(till) > now then
    return false
  end
  redis.call('HSET', KEYS[2], life, whole(now + lasts) .. ' ' .. me)
  return true
end

if ARGV[5] ~= '' and redis.call('ZSCORE', KEYS[1], ARGV[5]) and claim(ARGV[5]) then
  return { 1, ARGV[5] }
end
if quiet <= now then
  for _, life in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', whole(now), 'LIMIT', 0, 64)) do
    if claim(life) then
      return { 1, life }
    end
  end
end
return { 1, '' }
