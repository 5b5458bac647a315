-- What the scripts share that touch the archive's queue of a partition. No KEYS, no ARGV.
--
-- The queue is a stream. An entry is an event, or what became of events that are not in it:
--   c  channel   x  when it expires, in ms (0: never)   o  offset   e  the event as stored
--   c  channel   g  a note: words separated by spaces, each of which is
--                     p<epoch>-<offset>-<check>        purged up to there
--                     <epoch>-<first>-<last>-<time>    not archived for want of room; `time` is of
--                                                      the last
-- At its bound the queue takes no events. Notes then wait in the gaps, a hash: channel -> note, and
-- later events of a channel whose note waits go into the note too, so that the order is kept.
-- Both keys stay for good, the hash by its field '': a script whose keys are there in part is
-- refused while their slot migrates.

local GROUP = 'archive'
-- A channel has more of them only if it forked that often while the queue was full.
local MOST_RANGES = 16

local function keep(queue, gaps)
  if redis.call('EXISTS', queue, gaps) < 2 then
    if redis.call('EXISTS', queue) == 0 then
      redis.call('XGROUP', 'CREATE', queue, GROUP, '0', 'MKSTREAM')
    end
    redis.call('HSETNX', gaps, '', 0)
  end
end

-- How many entries the queue still takes.
local function room(queue, most)
  local length = redis.call('XLEN', queue)
  return most == '0' and math.huge or tonumber(most) - length
end

-- What there is to know before anything is written: the room, and the note that waits.
local function look(queue, gaps, channel, most)
  return {
    queue = queue,
    gaps = gaps,
    channel = channel,
    room = room(queue, most),
    note = redis.call('HGET', gaps, channel),
  }
end

-- Put a note that waits into the queue.
local function release(queue, gaps, channel, words)
  redis.call('XADD', queue, '*', 'c', channel, 'g', words)
  redis.call('HDEL', gaps, channel)
end

-- Queue an event; if there is no room, `note` must be called behind the last one.
local function put(queue, record, offset, time, stored)
  if queue.note and not queue.missed and queue.room >= 2 then
    release(queue.queue, queue.gaps, queue.channel, queue.note)
    queue.note = false
    queue.room = queue.room - 1
  end
  if queue.note or queue.missed or queue.room < 1 then
    queue.missed = queue.missed or offset
    return
  end
  queue.room = queue.room - 1
  local expires = record.archive_ttl > 0 and time + record.archive_ttl or 0
  redis.call('XADD', queue.queue, '*', 'c', queue.channel, 'x', whole(expires),
    'o', whole(offset), 'e', stored)
end

-- A note, extended by a range.
local function widened(words, epoch, first, last, time)
  local before, its, from = string.match(words, '^(.-)(%x+)%-(%d+)%-%d+%-%d+$')
  local tail = '-' .. whole(last) .. '-' .. whole(time)
  if its == epoch then
    return before .. epoch .. '-' .. from .. tail
  end
  local _, count = string.gsub(words, '%S+', '')
  if its and count >= MOST_RANGES then
    -- Too much is said to be missing then, but nothing too little.
    return before .. epoch .. '-' .. whole(math.min(tonumber(from), first)) .. tail
  end
  return words .. (words == '' and '' or ' ') .. epoch .. '-' .. whole(first) .. tail
end

-- Note what was not queued, up to the last event.
local function note(queue, record, last, time)
  if queue.missed then
    redis.call('HSET', queue.gaps, queue.channel,
      widened(queue.note or '', record.epoch, queue.missed, last, time))
  end
end

-- Queue a purge up to the record's top; what was not archived below needs no telling any more.
local function clear(queue, record)
  local words = 'p' .. record.epoch .. '-' .. whole(record.offset) .. '-' .. record.check
  if queue.room >= 1 then
    release(queue.queue, queue.gaps, queue.channel, words)
  else
    redis.call('HSET', queue.gaps, queue.channel, words)
  end
end
