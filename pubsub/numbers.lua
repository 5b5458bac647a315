-- What all scripts share; it stands before each of them. No KEYS, no ARGV.

-- The time in ms: Redis's, unless a test gives one.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A number as text; tostring() rounds from 10^14 on.
local function whole(number)
  return string.format('%.0f', number)
end
