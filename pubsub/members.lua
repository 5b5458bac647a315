-- Read a page of the presence set of a channel, by session.
--
-- KEYS  1 members   2 their order   3 version
-- ARGV  1 now (empty: Redis's time)   2 where to begin, as ZRANGEBYLEX has it   3 how many at most
--       4 how long the version of an empty set is kept, in ms
-- Returns {total, version, 1 if there are more or else 0, then for each: session, member}.

local limit = tonumber(ARGV[3])
local version = redis.call('GET', KEYS[3])
if not version then
  version = whole(version_now(clock(ARGV[1]), 0))
  -- Kept, so that the next change follows on what is told now; a full Redis may refuse.
  redis.pcall('SET', KEYS[3], version, 'PX', ARGV[4])
end
local answer = { redis.call('ZCARD', KEYS[2]), version, 0 }
local found = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[2], '+', 'LIMIT', 0, limit + 1)
if #found > limit then
  found[#found] = nil
  if limit > 0 then
    answer[3] = 1
  end
end
for at = 1, #found, 1000 do
  local last = math.min(at + 999, #found)
  local members = redis.call('HMGET', KEYS[1], unpack(found, at, last))
  for i = at, last do
    answer[#answer + 1] = found[i]
    answer[#answer + 1] = members[i - at + 1] or ''
  end
end
return answer
