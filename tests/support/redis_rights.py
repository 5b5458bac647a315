"""All that a node asks of Redis, as rights of a user; operations.md and deploy/ show the same."""

from typing import Final

RIGHTS: Final = (
    "~galecast:* ~{galecast:* resetchannels &galecast:* &{galecast:* -@all "
    "+ping +info +select +time +eval +evalsha +subscribe +unsubscribe +publish "
    "+exists +get +incr +persist +pexpire +pttl +set +unlink "
    "+hdel +hexists +hget +hgetall +hlen +hmget +hrandfield +hset +hsetnx "
    "+sadd +srandmember +srem +sscan "
    "+xack +xadd +xgroup +xinfo +xlen +xpending +xrange +xreadgroup +xrevrange +xtrim "
    "+zadd +zcard +zrange +zrangebylex +zrangebyscore +zrem +zscore"
)
"""For the key prefix `galecast`."""

MORE: Final = {
    "publish.wait_replicas": "+wait",
    "Sentinel": "+role",
    "Cluster": "+asking +cluster|slots +command|info +ssubscribe +sunsubscribe +spublish",
}
"""What is needed beside it, and for what."""
