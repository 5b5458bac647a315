-- Tell the versions of many presence sets of one partition, all of which somebody watches.
--
-- KEYS  the versions
-- ARGV  1 now (empty: Redis's time)   2 how long the version of an empty set is kept, in ms
--       then for each: the version that the node was told
-- Returns the versions. One below what was told is of a master that lost what it had announced: it
--       starts again above both.

local now = clock(ARGV[1])
local answers = {}
for i = 1, #KEYS do
  local told = tonumber(ARGV[2 + i])
  local version = redis.call('GET', KEYS[i])
  if not version then
    version = whole(version_now(now, told))
    redis.call('SET', KEYS[i], version, 'PX', ARGV[2])
  elseif tonumber(version) < told then
    version = whole(version_now(now, told))
    redis.call('SET', KEYS[i], version, 'KEEPTTL')
  end
  if redis.call('PTTL', KEYS[i]) >= 0 then
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
  answers[i] = version
end
return answers
