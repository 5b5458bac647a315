-- Renew a node's lease, or take one; and claim what a node left behind whose lease has lapsed.
--
-- KEYS  1 leases   2 claims: <life> -> when the claim ends and whose it is
--       3 steady: <life> -> since when it has renewed its lease without a gap, in ms
-- ARGV  1 now (empty: Redis's time)   2 this life: <generation> <node>   3 how long a lease and a
--       claim last, in ms   4 1: take a lease, 0: renew it   5 the life that was claimed (or empty)
--       6 1: Redis was away since the call before this one, or did not answer it
-- Returns {0} if the lease is gone or claimed; else {1, the life that this node has claimed or
--       empty}.

local now = clock(ARGV[1])
local me, lasts = ARGV[2], tonumber(ARGV[3])
local till = tonumber(redis.call('ZSCORE', KEYS[1], me)) or 0
if ARGV[4] == '0' then
  if till == 0 or redis.call('HEXISTS', KEYS[2], me) == 1 then
    return { 0 }
  end
end
redis.call('ZADD', KEYS[1], whole(now + lasts), me)

-- While Redis is away, or asleep, or its clock jumps, leases lapse whose nodes live. A node that saw
-- such a gap in its own renewals claims nobody before a whole lease has gone by without one, in
-- which all that live renew theirs. Since when is kept here: a Redis that goes back to what it held
-- earlier shows a gap too, and an answer that is lost hides none.
local since = tonumber(redis.call('HGET', KEYS[3], me))
if not since or ARGV[6] == '1' or math.abs(now - (till - lasts)) > lasts / 2 then
  since = now
  redis.call('HSET', KEYS[3], me, whole(since))
end

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
if now - since >= lasts then
  for _, life in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', whole(now), 'LIMIT', 0, 64)) do
    if claim(life) then
      return { 1, life }
    end
  end
end
return { 1, '' }
