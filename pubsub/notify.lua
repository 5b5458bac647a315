-- Keep notices of one topic, the latest of each name, and announce what changed; safe to repeat.
--
-- KEYS  1 notices: name -> "<at> <until>", in s   2 names by revision   3 names by when they end, in
--         s   4 state: `epoch`, `revision`
-- ARGV  1 now (empty: Redis's time)   2 an epoch, should one begin   3 the address of all nodes
--       4 PUBLISH or SPUBLISH   5 how many notices are kept at most
--       then for each: name, at, until, message (control_message.py)
-- Returns {how many changed, how many went since there were too many}.
--
-- A revision is at least the time in microseconds: those that a lost master gave out are below.

local now = clock(ARGV[1])
local revision = tonumber(redis.call('HGET', KEYS[4], 'revision'))
if not revision or redis.call('HEXISTS', KEYS[4], 'epoch') == 0 then
  revision = now * 1000
  redis.call('HSET', KEYS[4], 'epoch', ARGV[2], 'revision', whole(revision))
end

local changed = 0
for i = 6, #ARGV, 4 do
  local name, at, till = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local kept = redis.call('HGET', KEYS[1], name) or ''
  local at_before, till_before = string.match(kept, '^(%S+) (%S+)$')
  at_before, till_before = tonumber(at_before or ''), tonumber(till_before or '')
  local newer = not at_before or not till_before or at > at_before
    or (at == at_before and till > till_before)
  if newer and till * 1000 > now then
    revision = math.max(revision + 1, now * 1000)
    redis.call('HSET', KEYS[1], name, ARGV[i + 1] .. ' ' .. ARGV[i + 2])
    redis.call('ZADD', KEYS[2], whole(revision), name)
    redis.call('ZADD', KEYS[3], ARGV[i + 2], name)
    redis.call(ARGV[4], ARGV[3], ARGV[i + 3])
    changed = changed + 1
  end
end
forget_ended(now)

local dropped = 0
if changed > 0 then
  redis.call('HSET', KEYS[4], 'revision', whole(revision))
  local many = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[5])
  if many > 0 then
    for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, math.min(many, 1000) - 1)) do
      forget(name)
      dropped = dropped + 1
    end
  end
end
keep_all(now)
return { changed, dropped }
