-- Delete a channel's kept events; epoch and offsets go on.
--
-- KEYS  1 record   2 stream   3 queue of the archive   4 gaps in it
-- ARGV  1 now (empty: Redis's time)   2 the channel's address   3 PUBLISH or SPUBLISH
--       4 how long a record outlives its events, in ms   5 channel   6 1: its events are archived
--       7 bound of the queue (0: none)
-- Returns nothing if there is no record, else {epoch, offset, check} of the floor.

local now = clock(ARGV[1])
local record = load(KEYS[1], now)
if not record then
  return false
end
local queue = (ARGV[6] == '1' or record.archive > 0) and look(KEYS[3], KEYS[4], ARGV[5], ARGV[7])
record.floor = record.offset
record.expires = 0
-- The stream stays, and with it the highest id that it ever had.
redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)
if queue then
  keep(KEYS[3], KEYS[4])
  clear(queue, record)
end
save(KEYS[1], record, now, tonumber(ARGV[4]))
redis.call(ARGV[3], ARGV[2], mark('purge', record))
return { record.epoch, whole(record.offset), record.check }
