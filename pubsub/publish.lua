-- Publish a batch of events of one channel: all of it or nothing, and safe to repeat.
--
-- KEYS  1 record   2 stream   3, 4 generations of ids   5 known channels by when they lapse
--       6 active channels by name   7 active channels by when to look
--       8 queue of the archive   9 gaps in it
-- ARGV  1 now (empty: Redis's time)   2 an epoch, should one begin   3 channel   4 its address
--       5 PUBLISH or SPUBLISH   6 room: 1 a new record may be made, 0 not, - and it is not counted
--       7 history_size   8 history_ttl in ms   9 revision of the settings   10 idempotency window
--       in ms   11 how long a record outlives its events, in ms   12 1: write also if all ids are
--       known, so that who waits for replicas waits for those events   13 1: archive the events
--       14 how long the archive keeps them, in ms (0: for good)   15 bound of the queue (0: none)
--       then for each event: id, body (packed, see envelope.py)
-- Returns {status, epoch, offset before the first new event, then for each event: its check, or
--       the first one's position if its id is known, or nothing}; status 0: done, 1: done with a
--       new record, 2: no room for a new record, and nothing new was published.
--
-- Ids are kept in two generations: the younger one takes new ids for a window, then the other one,
-- whose ids are older than two windows by then, takes its place. Both are made together, since a
-- script whose keys are there in part is refused while their slot migrates.

local now = clock(ARGV[1])
local window = tonumber(ARGV[10])
local count = (#ARGV - 15) / 2

-- Which ids are known?
local known = {}
local young, old, started = KEYS[3], KEYS[4], 0
if window > 0 then
  local asked = { '' }
  for i = 1, count do
    asked[i + 1] = ARGV[14 + 2 * i]
  end
  local starts = {}
  for g = 3, 4 do
    local found = redis.call('HMGET', KEYS[g], unpack(asked))
    starts[g] = tonumber(found[1]) or 0
    if starts[g] + 2 * window > now then
      for i = 1, count do
        known[i] = known[i] or found[i + 1]
      end
    end
  end
  started = starts[3]
  if starts[4] > starts[3] then
    young, old, started = KEYS[4], KEYS[3], starts[4]
  end
end

local answers = { 0, '', '0' }
local fresh = {}
local first = {}
for i = 1, count do
  local id = ARGV[14 + 2 * i]
  answers[3 + i] = known[i] or ''
  if not known[i] and not first[id] then
    first[id] = i
    fresh[#fresh + 1] = i
  end
end
-- WAIT is for what its connection wrote; this one may not be the one that wrote the events.
local function touch()
  for g = 3, 4 do
    if ARGV[12] == '1' and redis.call('EXISTS', KEYS[g]) == 1 then
      redis.call('HSET', KEYS[g], '', redis.call('HGET', KEYS[g], '') or 0)
    end
  end
end

if #fresh == 0 then
  touch()
  return answers
end

local record = load(KEYS[1], now)
local fork_it = not record
if not record then
  if ARGV[6] == '0' then
    touch()
    answers[1] = 2
    return answers
  end
  answers[1] = 1
  record = begin(KEYS[2], 0, ARGV[2])
elseif beyond(KEYS[2], record) then
  fork_it = true
  fork(record, KEYS[2], 0, ARGV[2])
end

-- From here on nothing can fail but for want of memory, and that at the first write; or since the
-- archive's queue is none, before that.
local revision = tonumber(ARGV[9])
if revision >= record.revision then
  record.revision = revision
  record.size = tonumber(ARGV[7])
  record.ttl = tonumber(ARGV[8])
  record.archive = ARGV[13] == '1' and 1 or math.min(record.archive * 2, 2)
  record.archive_ttl = tonumber(ARGV[14])
end
if record.expires <= now then
  record.hidden = record.offset
end
local forked = fork_it and mark('fork', record)
local queue = record.archive == 1 and look(KEYS[8], KEYS[9], ARGV[3], ARGV[15])
keep(KEYS[8], KEYS[9])

local epoch, offset, check = record.epoch, record.offset, record.check
local time = math.max(record.time, now)
local packed_time = cmsgpack.pack(time)
local head = '\150\1\176' .. epoch .. '\176'
local skipped = '-' .. whole(record.skipped)
local kept = math.max(record.size, LEAST_KEPT)
local envelope = {
  '\146\1\150\166events\176' .. epoch .. cmsgpack.pack(offset) .. '\176' .. check .. packed_time
    .. struct.pack('>BH', 220, #fresh),
}
local ids = {}
answers[2] = epoch
answers[3] = whole(offset)
for _, i in ipairs(fresh) do
  local id = ARGV[14 + 2 * i]
  local prev = check
  check = string.sub(redis.sha1hex(prev .. id), 1, 16)
  offset = offset + 1
  local body = ARGV[15 + 2 * i]
  envelope[#envelope + 1] = '\151' .. body .. '\176' .. check
  local stored = head .. prev .. '\176' .. check .. packed_time .. '\150' .. body
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', kept, whole(offset) .. skipped, 'e', stored)
  if queue then
    put(queue, record, offset, time, stored)
  end
  answers[3 + i] = check
  ids[#ids + 1] = id
  ids[#ids + 1] = epoch .. '-' .. whole(offset) .. '-' .. check
  known[i] = ids[#ids]
end
for i = 1, count do
  if answers[3 + i] == '' then
    answers[3 + i] = known[first[ARGV[14 + 2 * i]]]
  end
end

if queue then
  note(queue, record, offset, time)
end

record.offset, record.check, record.time = offset, check, time
record.expires = 0
if record.size > 0 and record.ttl > 0 then
  record.expires = now + record.ttl
end
redis.call('PEXPIRE', KEYS[2], whole(math.max(record.expires - now, LEAST_KEPT_MS) + SLACK_MS))
if record.expires > 0 and record.listed == 0 and ARGV[6] ~= '-' then
  list(KEYS[6], KEYS[7], ARGV[3], record, record.expires)
end
save(KEYS[1], record, now, tonumber(ARGV[11]))
if answers[1] == 1 and ARGV[6] ~= '-' then
  redis.call('ZADD', KEYS[5], whole(record.lapses), ARGV[3])
end

if window > 0 then
  if started + window <= now then
    young, old = old, young
    -- It is gone by its time to live, but for clocks that were turned.
    redis.call('UNLINK', young)
    redis.call('HSET', young, '', whole(now), unpack(ids))
    redis.call('PEXPIRE', young, whole(2 * window))
    if redis.call('HSETNX', old, '', 0) == 1 then
      redis.call('PEXPIRE', old, whole(2 * window))
    end
  else
    redis.call('HSET', young, unpack(ids))
  end
end

if forked then
  redis.call(ARGV[5], ARGV[4], forked)
end
redis.call(ARGV[5], ARGV[4], table.concat(envelope))
return answers
