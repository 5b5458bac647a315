"""What `galecast check` says of a Redis, asked of real ones."""

from pubsub.redis_check import Finding, look_at
from pubsub.redis_client import connect
from pubsub.redis_url import parse_redis_url
from redis_server import RedisServer, free_port


async def findings(url: str, replicas: int = 0) -> list[Finding]:
    return await look_at(connect(parse_redis_url(url), timeout_s=5.0), replicas=replicas)


async def test_one_that_is_fit() -> None:
    with RedisServer(aof=True) as server:
        [(status, text)] = await findings(server.url)
    assert status == "ok"
    assert text.startswith("Redis ")


async def test_one_that_may_lose_what_it_holds() -> None:
    with RedisServer("maxmemory-policy allkeys-lru") as server:
        found = await findings(server.url, replicas=2)
    assert [status for status, _text in found] == ["ok", "warn", "warn", "warn"]
    texts = "\n".join(text for _status, text in found)
    assert "maxmemory-policy is allkeys-lru: it may drop channels" in texts
    assert "appendonly is off" in texts
    assert "publish.wait_replicas is 2, but it has 0" in texts


async def test_a_replica_takes_no_events() -> None:
    with RedisServer(f"replicaof 127.0.0.1 {free_port()}") as server:
        found = await findings(server.url)
    assert ("fail", "it is a replica, which takes no events: name the master") in found


async def test_a_user_who_may_not_ask() -> None:
    with RedisServer("user few on nopass ~* &* -@all +ping") as server:
        ok, (status, text) = await findings(f"unix://few:any@{server.socket}")
    assert ok == ("ok", "reached")
    assert status == "warn"
    assert "info" in text


async def test_one_that_is_not_there() -> None:
    [(status, text)] = await findings(f"redis://127.0.0.1:{free_port()}")
    assert status == "fail"
    assert text.startswith("cannot be reached: ")


async def test_a_wrong_password() -> None:
    with RedisServer('requirepass "right"') as server:
        [(status, text)] = await findings(f"unix://:hidden@{server.socket}")
    assert status == "fail"
    assert text.startswith("cannot be reached: invalid username-password pair")
    assert "hidden" not in text


async def test_tls_to_one_that_speaks_none() -> None:
    with RedisServer(tcp=True) as server:
        [(status, text)] = await findings(f"rediss://127.0.0.1:{server.port}")
    assert status == "fail"
    assert text.removeprefix("cannot be reached: ")
