-- Let a node's subscription to a channel end: give its lease back.
--
-- KEYS  1 record
-- ARGV  1 now (empty: Redis's time)   2 node   3 how long a record outlives its events, in ms
-- Returns 1, or 0 if the node had no lease.

local now = clock(ARGV[1])
local record = load(KEYS[1], now)
if not record or redis.call('HDEL', KEYS[1], 'n:' .. ARGV[2]) == 0 then
  return 0
end
record.leased = 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 2) == 'n:' then
    local till = tonumber(fields[i + 1]) or 0
    if till > now then
      record.leased = math.max(record.leased, till)
    else
      -- Of a node that died.
      redis.call('HDEL', KEYS[1], fields[i])
    end
  end
end
save(KEYS[1], record, now, tonumber(ARGV[3]))
return 1
