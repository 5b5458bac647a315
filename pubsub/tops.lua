-- Tell the tops of many channels of one partition; renew a node's leases that are half over.
--
-- KEYS  1 known channels by when they lapse   2 active channels by name   3 active channels by when
--       to look   then the records
-- ARGV  1 now (empty: Redis's time)   2 node (empty: renew nothing)   3 its lease in ms   4 how long
--       a record outlives its events, in ms   then the channels, in the order of the records
-- Returns for each channel {epoch, offset, check, 1 if it is active or else 0}, or nothing if it has
--       no record.

local now = clock(ARGV[1])
local lease = tonumber(ARGV[3])
local answers = {}
for i = 1, #KEYS - 3 do
  local key, name = KEYS[3 + i], ARGV[4 + i]
  local record = load(key, now)
  if not record then
    answers[i] = false
  else
    if ARGV[2] ~= '' then
      local till = tonumber(redis.call('HGET', key, 'n:' .. ARGV[2])) or 0
      if till - now < lease / 2 then
        till = now + lease
        record.leased = math.max(record.leased, till)
        if record.listed == 0 then
          list(KEYS[2], KEYS[3], name, record, till)
        end
        redis.call('HSET', key, 'n:' .. ARGV[2], whole(till))
        save(key, record, now, tonumber(ARGV[4]))
      end
    end
    local active = 0
    if math.max(record.expires, record.leased) > now then
      active = 1
    end
    answers[i] = { record.epoch, whole(record.offset), record.check, active }
  end
end
return answers
