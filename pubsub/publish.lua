-- Publish a batch of events of one channel: all of it or nothing, and safe to repeat.
--
-- KEYS  1 record   2 stream   3, 4 generations of ids   5 known channels by when they lapse
--       6 active channels by name   7 active channels by when to look
--       8 queue of the archive   9 gaps in it; for schedules also: 10, 11 generations of ids that
--       were fired, which are there once one was
-- ARGV  1 now (empty: Redis's time)   2 an epoch, should one begin   3 channel   4 its address
--       5 PUBLISH or SPUBLISH   6 room: 1 a new record may be made, 0 not, - and it is not counted
--       7 history_size   8 history_ttl in ms   9 revision of the settings   10 idempotency window
--       in ms   11 how long a record outlives its events, in ms   12 1: write also if all ids are
--       known, so that who waits for replicas waits for those events   13 1: archive the events
--       14 how long the archive keeps them, in ms (0: for good)   15 bound of the queue (0: none)
--       16 empty, or that these are fired by a claim on schedules: when it ends, in ms, for how long
--       their ids are remembered, in ms, and the serial of each, parted by blanks
--       then for each event: id, body (packed, see envelope.py)
-- Returns {status, epoch, offset before the first new event, then for each event: its check, or
--       the first one's position if its id is known, x and its serial if it was cancelled, or
--       nothing}; status 0: done, 1: done and one more channel is counted, 2: no room for a new
--       record, and nothing new was published, 3: the claim has ended, and nothing was published.

local now = clock(ARGV[1])
local window = tonumber(ARGV[10])
local count = (#ARGV - 16) / 2
local asked = {}
for i = 1, count do
  asked[i] = ARGV[15 + 2 * i]
end

-- Which ids are known?
local known, memory = {}, nil
if window > 0 then
  known, memory = recall(KEYS[3], KEYS[4], window, asked, now)
end
local fired
if ARGV[16] ~= '' then
  local claim = {}
  for word in string.gmatch(ARGV[16], '%S+') do
    claim[#claim + 1] = word
  end
  -- By the time that it is remembered no more, nobody else may come with the same.
  if tonumber(claim[1]) <= now then
    return { 3, '', '0' }
  end
  local found
  found, fired = recall(KEYS[10], KEYS[11], tonumber(claim[2]), asked, now)
  for i = 1, count do
    -- Another schedule of that id may have been cancelled, which is nothing to this one.
    if found[i] and (string.sub(found[i], 1, 1) ~= 'x' or found[i] == 'x' .. claim[2 + i]) then
      known[i] = found[i]
    end
  end
end

local answers = { 0, '', '0' }
local fresh = {}
local first = {}
for i = 1, count do
  local id = asked[i]
  answers[3 + i] = known[i] or ''
  if not known[i] and not first[id] then
    first[id] = i
    fresh[#fresh + 1] = i
  end
end
-- WAIT is for what its connection wrote; this one may not be the one that wrote the events.
local function touch()
  for _, key in ipairs({ KEYS[3], KEYS[4], KEYS[10], KEYS[11] }) do
    if ARGV[12] == '1' and redis.call('EXISTS', key) == 1 then
      redis.call('HSET', key, '', redis.call('HGET', key, '') or 0)
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
  if not fits(ARGV[6], KEYS[5], ARGV[3]) then
    touch()
    answers[1] = 2
    return answers
  end
  answers[1] = 1
  record = begin(KEYS[2], least(ARGV[13], now), ARGV[2])
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
  local id = asked[i]
  local prev = check
  check = string.sub(redis.sha1hex(prev .. id), 1, 16)
  offset = offset + 1
  local body = ARGV[16 + 2 * i]
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
    answers[3 + i] = known[first[asked[i]]]
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
  answers[1] = count_in(KEYS[5], ARGV[3], record)
end

if window > 0 then
  remember(memory, ids, now)
end
if fired then
  remember(fired, ids, now)
end

if forked then
  redis.call(ARGV[5], ARGV[4], forked)
end
redis.call(ARGV[5], ARGV[4], table.concat(envelope))
return answers
