-- Send a message to nodes.
--
-- KEYS  1 the address
-- ARGV  1 PUBLISH or SPUBLISH   2 the message (control_message.py)
-- Returns how many heard it, as far as is known.

return redis.call(ARGV[1], KEYS[1], ARGV[2])
