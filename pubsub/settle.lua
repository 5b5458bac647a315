-- Bring the lists of a partition up to date for channels that may have lapsed or become inactive.
--
-- KEYS  1 known channels by when they lapse   2 active channels by name   3 active channels by when
--       to look   then the records
-- ARGV  1 now (empty: Redis's time)   then the channels, in the order of the records
-- Returns how many channels have lapsed.

local now = clock(ARGV[1])
local lapsed = 0
for i = 1, #KEYS - 3 do
  local key, name = KEYS[3 + i], ARGV[1 + i]
  local record = load(key, now)
  if not record then
    redis.call('ZREM', KEYS[1], name)
    redis.call('ZREM', KEYS[2], name)
    redis.call('ZREM', KEYS[3], name)
    lapsed = lapsed + 1
  else
    redis.call('ZADD', KEYS[1], whole(record.lapses), name)
    local till = math.max(record.expires, record.leased)
    if till > now then
      list(KEYS[2], KEYS[3], name, record, till)
      redis.call('HSET', key, 'listed', 1)
    else
      redis.call('ZREM', KEYS[2], name)
      redis.call('ZREM', KEYS[3], name)
      redis.call('HSET', key, 'listed', 0)
    end
  end
end
return lapsed
