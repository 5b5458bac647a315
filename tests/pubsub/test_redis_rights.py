"""What a user of Redis has to be allowed: all that a node asks, and no more than is told."""

import re
from pathlib import Path

import pytest

import pubsub
from live_rig import BEARER, live, token
from pubsub.redis_presence import RedisPresence
from redis_rig import until
from redis_rights import RIGHTS
from redis_server import RedisServer

ROOM = Path(pubsub.__file__).parent
ROOT = ROOM.parent
PASSWORD = "a-password"


def allowed() -> set[str]:
    return {word[1:].upper() for word in RIGHTS.split() if word.startswith("+")}


def test_what_scripts_and_calls_use_is_allowed() -> None:
    scripts = "".join(path.read_text() for path in ROOM.glob("*.lua"))
    # MongoDB has commands too.
    files = [path for path in ROOM.glob("*.py") if not path.name.startswith("mongo")]
    code = "".join(path.read_text() for path in files)
    used = set(re.findall(r"redis\.p?call\(\s*'(\w+)'", scripts))
    used |= set(re.findall(r"\.command\(\s*\"(\w+)\"", code))
    assert len(used) > 25
    assert used - allowed() == set()


@pytest.mark.parametrize("document", ["docs/operations.md", "deploy/README.md"])
def test_the_documents_tell_them(document: str) -> None:
    assert " ".join(RIGHTS.split()) in " ".join((ROOT / document).read_text().split())


async def test_a_node_with_these_rights_asks_for_nothing_else() -> None:
    user = f'user node on ">{PASSWORD}" {RIGHTS}'
    with RedisServer(user, tcp=True) as server:
        url = f"redis://node:{PASSWORD}@127.0.0.1:{server.port}"
        given = {"broker__url": url, "broker__check_s": 0.2, "broker__lease_s": 1.0}
        async with live(node="n1", **given) as one, live(node="n2", **given) as two:
            await until(
                lambda: (
                    not one.node.lifecycle.why_not_ready()
                    and not two.node.lifecycle.why_not_ready()
                )
            )
            client, other = await one.ws(token=token("u7")), await two.ws()
            await client.call("subscribe", channel="a.b", presence=True)
            await other.call("subscribe", channel="a.b", presence=True)
            await other.call("presence", channel="a.b", info={"x": 1})
            await two.publish("a.b", 1, id="x")
            await client.next("event")
            for path in ("/v1/nodes", "/v1/sessions", "/v1/channels", "/v1/channels/a.b/presence"):
                answer = await one.request("GET", path, **BEARER)
                assert answer.status == 200, answer.body
            ticket = await two.request("POST", "/v1/tickets", **BEARER)
            stream = await one.sse(f"channel=a.b&ticket={ticket.json['ticket']}")
            stream.close()
            purge = await one.request("DELETE", "/v1/channels/a.b/events", **BEARER)
            assert purge.status in (200, 204), purge.body
            ended = await two.request("DELETE", "/v1/users/u7/sessions", **BEARER)
            assert ended.json["ended"] == 1
            await other.call("unsubscribe", channel="a.b")
            presence = one.node.presence
            assert isinstance(presence, RedisPresence)
            await presence.tend()
        assert server.ask("ACL", "LOG") == []
