-- Acknowledge what was archived and trim it away, let notes into the queue, read what comes next.
--
-- All nodes read as one consumer, and what was handed out and not acknowledged comes first: so who
-- takes a partition over asks nobody what the one before it had, and nothing waits for it.
--
-- KEYS  1 queue   2 gaps
-- ARGV  1 how many entries at most   2 about how many bytes at most   3 bound of the queue (0: none)
--       then the ids of the entries that were archived
-- Returns {entries in the queue, age of the oldest in ms, notes that wait, then entries: {id,
--       fields}}.

local most, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local PIECE = 1000

-- The highest id that was handed out, or nil if there is no group.
local function handed()
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local named = {}
    for i = 1, #group, 2 do
      named[group[i]] = group[i + 1]
    end
    if named['name'] == GROUP then
      return named['last-delivered-id']
    end
  end
  return nil
end

keep(KEYS[1], KEYS[2])
if not handed() then
  redis.call('XGROUP', 'CREATE', KEYS[1], GROUP, '0')
end

for i = 4, #ARGV, PIECE do
  redis.call('XACK', KEYS[1], GROUP, unpack(ARGV, i, math.min(i + PIECE - 1, #ARGV)))
end
if #ARGV > 3 then
  local pending = redis.call('XPENDING', KEYS[1], GROUP)
  local least = pending[2]
  if pending[1] == 0 then
    local ms, number = string.match(handed(), '^(%d+)-(%d+)$')
    least = ms .. '-' .. whole(number + 1)
  end
  redis.call('XTRIM', KEYS[1], 'MINID', least)
end

local free = room(KEYS[1], ARGV[3])
if free >= 1 and redis.call('HLEN', KEYS[2]) > 1 then
  local found = redis.call('HRANDFIELD', KEYS[2], 64, 'WITHVALUES')
  for i = 1, #found, 2 do
    if found[i] ~= '' and free >= 1 then
      release(KEYS[1], KEYS[2], found[i], found[i + 1])
      free = free - 1
    end
  end
end

local answer = { 0, 0, 0 }
local bytes = 0
-- Read pieces from an id on; their size is guessed from what has come.
local function read(from)
  local count = #answer - 3
  while count < most and bytes < most_bytes do
    local piece = 16
    if count > 0 then
      piece = math.max(1, math.floor((most_bytes - bytes) * count / (bytes + 1)))
    end
    piece = math.min(piece, most - count)
    local streams = redis.call('XREADGROUP', 'GROUP', GROUP, GROUP, 'COUNT', piece,
      'STREAMS', KEYS[1], from)
    local entries = streams and streams[1] and streams[1][2] or {}
    for _, entry in ipairs(entries) do
      -- One that somebody has deleted has no fields.
      local fields = entry[2] or {}
      for _, value in ipairs(fields) do
        bytes = bytes + #value
      end
      answer[#answer + 1] = { entry[1], fields }
      if from ~= '>' then
        from = entry[1]
      end
    end
    count = #answer - 3
    if #entries < piece then
      return
    end
  end
end
read('0')
read('>')

answer[1] = redis.call('XLEN', KEYS[1])
answer[3] = redis.call('HLEN', KEYS[2]) - 1
if answer[4] then
  answer[2] = math.max(0, clock('') - tonumber(string.match(answer[4][1], '^%d+')))
end
return answer
