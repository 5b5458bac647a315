-- Let members enter the presence set of a channel, or set what is known of them; safe to repeat.
--
-- KEYS  1 members   2 their order   3 version   4 entries of the node's life in the partition
--       5 lives that have entries in the partition
-- ARGV  1 now (empty: Redis's time)   2 channel   3 its address   4 PUBLISH or SPUBLISH
--       5 life: <generation> <node>   then for each member: session, body (packed, see envelope.py)
-- Returns how many changes were announced.

local now = clock(ARGV[1])
local generation = string.sub(ARGV[5], 1, 16)
local changes = 0
for i = 6, #ARGV, 2 do
  local session, body = ARGV[i], ARGV[i + 1]
  local before = redis.call('HGET', KEYS[1], session)
  if before ~= generation .. body then
    redis.call('HSET', KEYS[1], session, generation .. body)
    redis.call('ZADD', KEYS[2], 0, session)
  end
  redis.call('SADD', KEYS[4], ARGV[2] .. '\0' .. session)
  -- Under a new generation of its node a member is who it was.
  if not before or string.sub(before, 17) ~= body then
    local action = before and 'update' or 'join'
    announce(ARGV[4], ARGV[3], action, count(KEYS[3], now), body)
    changes = changes + 1
  end
end
-- By this others find what was entered though the lease is gone.
redis.call('SADD', KEYS[5], ARGV[5])
redis.call('PERSIST', KEYS[3])
return changes
