-- What the scripts of notices share; it stands before each of them. KEYS are theirs.

-- Those that have ended go a few at a time: Redis stands still meanwhile.
local ENDED_AT_ONCE = 256
-- Keys go a little after what they hold has ended.
local SLACK_MS = 60000

local function forget(name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
  redis.call('ZREM', KEYS[3], name)
end

local function forget_ended(now)
  local ended = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.3f', now / 1000),
    'LIMIT', 0, ENDED_AT_ONCE)
  for _, name in ipairs(ended) do
    forget(name)
  end
end

-- Let all keys stay until the last notice ends.
local function keep_all(now)
  local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
  local lasts = math.max(0, (tonumber(last) or 0) * 1000 - now) + SLACK_MS
  for i = 1, #KEYS do
    redis.call('PEXPIRE', KEYS[i], whole(lasts))
  end
end
