-- The time by which claims on schedules end.
--
-- KEYS  1 any of the server that is asked
-- ARGV  1 now (empty: Redis's time)

return clock(ARGV[1])
