-- What the scripts of presence sets share; it stands before each of them. No KEYS, no ARGV.
--
-- A member is kept as the generation of its node's lease, 16 digits, then session, user and info,
-- packed as envelope.py says. A version that is gone starts again from the time in microseconds:
-- above whatever was seen, since no set changes a million times a second.

-- A version to start from, above `least`.
local function version_now(now, least)
  return math.max(now * 1000, least + 1)
end

-- Count a change of a set, and return the version that it makes.
local function count(key, now)
  if redis.call('EXISTS', key) == 0 then
    redis.call('SET', key, whole(version_now(now, 0)))
  end
  return redis.call('INCR', key)
end

-- Send the envelope of a change.
local function announce(send, address, action, version, body)
  redis.call(send, address, '\146\1\150\168presence' .. cmsgpack.pack(action)
    .. cmsgpack.pack(version) .. body)
end
