-- What the scripts of channels share; it stands before each of them. No KEYS, no ARGV.
--
-- A channel's record is a hash:
--   epoch offset check  the top
--   time                of the last event, in ms; it never decreases
--   floor               the highest offset that was purged
--   hidden              events up to this offset have expired, or are of a record that was lost
--   skipped             offsets that no event ever got: offset - skipped counts the events
--   size ttl revision   the rule in force (ttl in ms), and of which revision of the settings it is
--   expires             when the events that the rule shows expire (0: it shows none), in ms
--   leased              when the last lease of a subscribed node ends (0: none), in ms
--   listed              1 while the channel stands among the active ones
--   lapses              when the record is no more, in ms
--   archive             1: its events go to the archive, 2: they did once, 0: never (or absent)
--   archive_ttl         how long the archive keeps them (0, or absent: for good), in ms
--   n:<node>            when the lease of that node ends, in ms
-- What is shown and what has lapsed follows from these times. The times to live of the keys only
-- free memory.
--
-- A stream's entry has the id <offset>-<skipped> and one field, "e"; what it and the envelopes
-- hold is described in envelope.py.

local FIELDS = {
  'epoch', 'check', 'offset', 'time', 'floor', 'hidden', 'skipped', 'size', 'ttl', 'revision',
  'expires', 'leased', 'listed', 'lapses', 'archive', 'archive_ttl',
}
-- From this one on they may be absent: nodes that knew no archive did not write them.
local LATER = 15
-- Repair needs some events, and some time, whatever the rule shows.
local LEAST_KEPT = 256
local LEAST_KEPT_MS = 60000
-- Keys go a little after what they hold has lapsed.
local SLACK_MS = 1000

-- The record, or nil if there is none, or none any more.
local function load(key, now)
  local values = redis.call('HMGET', key, unpack(FIELDS))
  local record = {}
  for i, field in ipairs(FIELDS) do
    local value = values[i]
    if i > 2 then
      value = tonumber(value)
    end
    if i >= LATER then
      value = value or 0
    end
    if not value then
      return nil
    end
    record[field] = value
  end
  if record.lapses <= now then
    return nil
  end
  return record
end

local function save(key, record, now, lapse)
  record.lapses = math.max(now, record.expires, record.leased) + lapse
  local values = { 'epoch', record.epoch, 'check', record.check }
  for i = 3, #FIELDS do
    values[#values + 1] = FIELDS[i]
    values[#values + 1] = whole(record[FIELDS[i]])
  end
  redis.call('HSET', key, unpack(values))
  redis.call('PEXPIRE', key, whole(record.lapses - now + SLACK_MS))
end

-- The highest offset that the stream ever held, and the skipped ones at that point.
local function last(stream)
  if redis.call('EXISTS', stream) == 1 then
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then
        local offset, skipped = string.match(info[i + 1], '^(%d+)-(%d+)$')
        return tonumber(offset), tonumber(skipped)
      end
    end
  end
  return 0, 0
end

-- A new record in a new epoch, above what the stream holds and above `least`.
local function begin(stream, least, epoch)
  local offset, skipped = last(stream)
  local top = math.max(offset, least)
  return {
    epoch = epoch,
    check = epoch,
    offset = top,
    time = 0,
    floor = 0,
    hidden = top,
    skipped = skipped + top - offset,
    size = 0,
    ttl = 0,
    revision = 0,
    expires = 0,
    leased = 0,
    listed = 0,
    archive = 0,
    archive_ttl = 0,
  }
end

-- The offset that a new record begins at, at least. That of an archived channel (1) is above all
-- that earlier ones had, which the archive still holds: it is the time in microseconds, and no
-- channel has a million events a second for long.
local function least(archived, now)
  return archived == '1' and now * 1000 or 0
end

-- Whether the stream holds what the record does not know of.
local function beyond(stream, record)
  return #redis.call('XRANGE', stream, whole(record.offset + 1), '+', 'COUNT', 1) > 0
end

-- Begin a new epoch of a record, above what the stream holds and above `least`.
local function fork(record, stream, least, epoch)
  local offset, skipped = last(stream)
  if offset <= record.offset then
    offset, skipped = record.offset, record.skipped
  end
  local top = math.max(offset, least)
  record.epoch = epoch
  record.check = epoch
  record.skipped = skipped + top - offset
  record.offset = top
end

-- Whether a record may be made: there is room (1, or - if it is not counted), or the channel is counted
-- still, since its record was lost or its time is over.
local function fits(room, known, name)
  return room ~= '0' or redis.call('ZSCORE', known, name)
end

-- Count a channel that has a new record; 1 if it was not counted, else 0.
local function count_in(known, name, record)
  return redis.call('ZADD', known, whole(record.lapses), name)
end

-- The envelope of a fork or a purge at the record's top.
local function mark(kind, record)
  return '\146\1\148' .. cmsgpack.pack(kind) .. '\176' .. record.epoch
    .. cmsgpack.pack(record.offset) .. '\176' .. record.check
end

-- What the rule shows: events above an offset, and above a count of events.
local function shown(record, now)
  if record.expires <= now then
    return record.offset, record.offset - record.skipped
  end
  return math.max(record.floor, record.hidden), record.offset - record.skipped - record.size
end

-- Offset and count of events of an entry's id.
local function place(id)
  local offset, skipped = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(offset), offset - skipped
end

-- Put a channel among the active ones; `till` may be too early, which then is looked into.
local function list(active, due, name, record, till)
  redis.call('ZADD', active, 0, name)
  redis.call('ZADD', due, whole(till), name)
  record.listed = 1
end
