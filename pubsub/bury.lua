-- Remove a lease: one's own, or that of a life whose entries were removed; safe to repeat.
--
-- KEYS  1 leases   2 claims   3 steady
-- ARGV  1 the life   2 who asks
-- Returns 1, or 0 if somebody else has claimed it.

local held = redis.call('HGET', KEYS[2], ARGV[1])
if held and string.match(held, '^%d+ (.*)$') ~= ARGV[2] then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 1
