-- Ids of a channel's events that are remembered for a window. No KEYS, no ARGV.
--
-- They are kept in two generations: the younger one takes new ids for a window, then the other one,
-- whose ids are older than two windows by then, takes its place. Both are made together, since a
-- script whose keys are there in part is refused while their slot migrates. The field with no name
-- says when a generation began.

-- What is remembered of ids, by their places; and the memory, for `remember`. Of an id that both
-- generations have the younger one tells.
local function recall(one, other, window, ids, now)
  local asked = { '' }
  for i, id in ipairs(ids) do
    asked[i + 1] = id
  end
  local memory = { young = one, old = other, window = window }
  local newer = redis.call('HMGET', one, unpack(asked))
  local older = redis.call('HMGET', other, unpack(asked))
  memory.started = tonumber(newer[1]) or 0
  local before = tonumber(older[1]) or 0
  if before > memory.started then
    memory.young, memory.old = other, one
    newer, older = older, newer
    memory.started, before = before, memory.started
  end
  local known = {}
  for i = 1, #ids do
    known[i] = memory.started + 2 * window > now and newer[i + 1]
      or before + 2 * window > now and older[i + 1]
  end
  return known, memory
end

-- Remember ids; `pairs` are ids and values in turn.
local function remember(memory, pairs, now)
  if memory.started + memory.window <= now then
    local young, old = memory.old, memory.young
    -- It is gone by its time to live, but for clocks that were turned.
    redis.call('UNLINK', young)
    redis.call('HSET', young, '', whole(now), unpack(pairs))
    redis.call('PEXPIRE', young, whole(2 * memory.window))
    if redis.call('HSETNX', old, '', 0) == 1 then
      redis.call('PEXPIRE', old, whole(2 * memory.window))
    end
  else
    redis.call('HSET', memory.young, unpack(pairs))
  end
end
