-- Let lives that have entries but no lease count as lapsed, so that somebody cleans up behind them;
-- safe to repeat.
--
-- KEYS  1 leases
-- ARGV  the lives
-- Returns how many had none.
--
-- A life takes its lease before it enters anything, and never again: one without a lease is over. Its
-- lease ends at 0, by which nobody can renew it.

local found = 0
for _, life in ipairs(ARGV) do
  if not redis.call('ZSCORE', KEYS[1], life) then
    redis.call('ZADD', KEYS[1], 0, life)
    found = found + 1
  end
end
return found
