-- Give an order to all nodes, and tell which of them live; whoever repeats it repeats the id in it.
--
-- KEYS  1 leases   2 the address of all nodes
-- ARGV  1 now (empty: Redis's time)   2 PUBLISH or SPUBLISH   3 the message (control_message.py)
--       4 how many lives are told at most
-- Returns the lives whose lease has not ended.

local now = clock(ARGV[1])
redis.call(ARGV[2], KEYS[2], ARGV[3])
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. whole(now), '+inf', 'LIMIT', 0, ARGV[4])
