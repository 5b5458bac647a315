-- Tell the notices of one topic that changed since a revision, a page at a time.
--
-- KEYS  1 notices: name -> "<at> <until>", in s   2 names by revision   3 names by when they end, in
--         s   4 state: `epoch`, `revision`
-- ARGV  1 now (empty: Redis's time)   2, 3 epoch and revision up to which the node has read
--       4 how many are told at most
-- Returns {1 if this begins anew since what the node has read is not of these, epoch (empty: none),
--       the revision up to which this reads, 1 if there may be more, then for each: name, notice}.

local now = clock(ARGV[1])
forget_ended(now)
local epoch = redis.call('HGET', KEYS[4], 'epoch') or ''
local revision = tonumber(redis.call('HGET', KEYS[4], 'revision')) or 0
local after, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
local anew = epoch ~= ARGV[2] or revision < after
if not anew and revision == after then
  return { 0, epoch, whole(revision), 0 }
end
if anew then
  after = 0
end

local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. whole(after), '+inf', 'WITHSCORES',
  'LIMIT', 0, limit)
local more = #found >= 2 * limit
if more then
  revision = tonumber(found[#found])
end
local answer = { anew and 1 or 0, epoch, whole(revision), more and 1 or 0 }
for i = 1, #found, 2 do
  local notice = redis.call('HGET', KEYS[1], found[i])
  if notice then
    answer[#answer + 1] = found[i]
    answer[#answer + 1] = notice
  end
end
return answer
