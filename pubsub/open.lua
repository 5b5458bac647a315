-- Let a node's subscription to a channel begin: make the record if there is none, take a lease.
--
-- KEYS  1 record   2 stream   3 known channels by when they lapse   4 active channels by name
--       5 active channels by when to look
-- ARGV  1 now (empty: Redis's time)   2 an epoch, should one begin   3 channel   4 its address
--       5 PUBLISH or SPUBLISH   6 room: 1 a new record may be made, 0 not   7 how long a record
--       outlives its events, in ms   8 node   9 its lease in ms
--       10 1: its events are archived
-- Returns {status, epoch, offset, check} of the top; status 0: done, 1: done and one more channel is
--       counted, 2: no room for a record, and nothing was done.

local now = clock(ARGV[1])
local status = 0
local forked = false
local record = load(KEYS[1], now)
if not record then
  if not fits(ARGV[6], KEYS[3], ARGV[3]) then
    return { 2 }
  end
  status = 1
  record = begin(KEYS[2], least(ARGV[10], now), ARGV[2])
elseif beyond(KEYS[2], record) then
  fork(record, KEYS[2], 0, ARGV[2])
  forked = true
end

local till = now + tonumber(ARGV[9])
record.leased = math.max(record.leased, till)
if record.listed == 0 then
  list(KEYS[4], KEYS[5], ARGV[3], record, till)
end
redis.call('HSET', KEYS[1], 'n:' .. ARGV[8], whole(till))
save(KEYS[1], record, now, tonumber(ARGV[7]))
if status == 1 then
  status = count_in(KEYS[3], ARGV[3], record)
end
if forked then
  redis.call(ARGV[5], ARGV[4], mark('fork', record))
end
return { status, record.epoch, whole(record.offset), record.check }
