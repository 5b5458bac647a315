-- Compare a position that a node has seen with the record; if they contradict, begin a new epoch.
--
-- KEYS  1 record   2 stream   3 known channels by when they lapse
-- ARGV  1 now (empty: Redis's time)   2 an epoch, should one begin   3 channel   4 its address
--       5 PUBLISH or SPUBLISH   6 room: 1 a new record may be made, 0 not   7 how long a record
--       outlives its events, in ms   8, 9, 10 epoch, offset and check of the evidence
--       11 1: its events are archived
-- Returns {status, epoch, offset, check} of the top; status 0: done, 1: done and one more channel is
--       counted, 2: no room for a record, and nothing was done.

local now = clock(ARGV[1])
local seen = { epoch = ARGV[8], offset = tonumber(ARGV[9]), check = ARGV[10] }
local record = load(KEYS[1], now)
local status = 0
local HEX = string.rep('%x', 16)

-- An event of the record's epoch that the rule shows: its check, and the check before it.
local function checks(offset)
  local found = redis.call('XRANGE', KEYS[2], whole(offset), whole(offset), 'COUNT', 1)[1]
  if not found then
    return nil
  end
  local low, counted = shown(record, now)
  local _, number = place(found[1])
  if offset <= low or number <= counted then
    return nil
  end
  -- cmsgpack knows no binary data; what is asked for stands at the start, at fixed places.
  local epoch, prev, check = string.match(found[2][2], '^\150\1\176(' .. HEX .. ')\176('
    .. HEX .. ')\176(' .. HEX .. ')')
  if epoch ~= record.epoch then
    return nil
  end
  return check, prev
end

local function contradicted()
  if seen.epoch ~= record.epoch then
    return false
  end
  if seen.offset > record.offset then
    return true
  end
  local check
  if seen.offset == record.offset then
    check = record.check
  else
    check = checks(seen.offset)
    if not check then
      local _, prev = checks(seen.offset + 1)
      check = prev
    end
  end
  return check ~= nil and check ~= seen.check
end

if not record then
  if not fits(ARGV[6], KEYS[3], ARGV[3]) then
    return { 2 }
  end
  status = 1
  record = begin(KEYS[2], math.max(seen.offset, least(ARGV[11], now)), ARGV[2])
elseif contradicted() then
  fork(record, KEYS[2], seen.offset, ARGV[2])
else
  return { 0, record.epoch, whole(record.offset), record.check }
end

save(KEYS[1], record, now, tonumber(ARGV[7]))
if status == 1 then
  status = count_in(KEYS[3], ARGV[3], record)
end
redis.call(ARGV[5], ARGV[4], mark('fork', record))
return { status, record.epoch, whole(record.offset), record.check }
