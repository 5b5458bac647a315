-- Tell some of what a life entered in a partition; if nothing is left, the life is no longer listed.
--
-- KEYS  1 entries of the life in the partition   2 lives that have entries in the partition
-- ARGV  1 life   2 how many at most
-- Returns the entries.

local found = redis.call('SRANDMEMBER', KEYS[1], ARGV[2])
if #found == 0 then
  redis.call('SREM', KEYS[2], ARGV[1])
end
return found
