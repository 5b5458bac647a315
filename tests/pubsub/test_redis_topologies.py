"""Reaching a Redis in each way that it may be run: port, socket, TLS, users with few rights."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker_rig import Notes, draft, ids, ready, redis_broker
from redis_rig import open_broker, until
from redis_rights import RIGHTS
from redis_server import RedisServer, free_port

PASSWORD = "pass:w@rd/1"
QUOTED = "pass%3Aw%40rd%2F1"


async def works(server: RedisServer, url: str) -> None:
    """Publish, hear, and read, in a place of its own or not."""
    async with open_broker(server, notes := Notes(), url=url) as broker:
        await broker.subscribe("a.b")
        await broker.publish([draft("x")])
        assert await broker.settled()
        assert ids(notes.events("a.b")) == ["x"]
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert list(found.events) == notes.events("a.b")


async def test_a_port_and_a_socket_and_a_database() -> None:
    with RedisServer(tcp=True) as server:
        await works(server, server.tcp_url)
        await works(server, f"{server.tcp_url}/3")
        await works(server, server.url)
        await works(server, f"{server.url}?db=3")
        assert {"db0", "db3"} <= set(server.ask("INFO", "keyspace"))


@pytest.mark.expect_log("pubsub.redis_link", "Redis is away: AuthenticationError", required=False)
async def test_passwords_and_users() -> None:
    options = (f'requirepass "{PASSWORD}"', f'user few on ">{PASSWORD}" ~* &* +@all')
    with RedisServer(*options, tcp=True) as server:
        place = f"127.0.0.1:{server.port}"
        await works(server, f"redis://:{QUOTED}@{place}")
        await works(server, f"redis://few:{QUOTED}@{place}")
        await works(server, f"unix://few:{QUOTED}@{server.socket}")
        broker = redis_broker(server, url=f"redis://few:wrong@{place}", interval_s=0.05)
        broker.bind(Notes())
        await broker.start()
        await until(lambda: broker.circuit_openings)
        assert broker.problem() is not None
        await broker.close()


async def test_a_user_needs_few_rights_only() -> None:
    with RedisServer(f'user node on ">{PASSWORD}" {RIGHTS}', tcp=True) as server:
        url = f"redis://node:{QUOTED}@127.0.0.1:{server.port}"
        broker = redis_broker(server, url=url, keys=None)
        broker.bind(notes := Notes())
        await broker.start()
        await ready(broker)
        top = await broker.subscribe("a.b")
        await broker.publish([draft("x"), draft("y", "other")])
        await broker.purge("a.b")
        await broker.contradict("a.b", top)
        await broker.compare()
        await broker.sweep()
        assert len(await broker.channels(prefix="", after="", limit=10)) == 2
        server.ask("DEL", broker.keys.record("a.b"))
        await broker.publish([draft("z")])
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events", "purge", "fork", "events"]
        await broker.unsubscribe("a.b")
        await broker.close()


@pytest.mark.expect_log("pubsub.redis_link", "call: NoPermissionError", required=False)
async def test_a_user_without_the_rights_is_no_success() -> None:
    with RedisServer(
        f'user node on ">{PASSWORD}" ~* &* -@all +ping +subscribe', tcp=True
    ) as server:
        url = f"redis://node:{QUOTED}@127.0.0.1:{server.port}"
        broker = redis_broker(server, url=url, interval_s=0.05)
        broker.bind(Notes())
        await broker.start()
        await until(lambda: broker.problem() == "Redis takes no events")
        await broker.close()


# ---- TLS


def _write_certificates(folder: Path) -> None:
    """Write ca.pem, and server.pem and server.key for 127.0.0.1 signed by it."""
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])

    def certificate(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            address = x509.IPAddress(ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(ca_key, hashes.SHA256())

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    for file, made in (
        ("ca.pem", certificate(ca_name, ca_key.public_key(), ca=True)),
        ("server.pem", certificate(name, key.public_key(), ca=False)),
    ):
        (folder / file).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[RedisServer, int]]:
    """A Redis that speaks TLS and asks for a certificate; its port."""
    _write_certificates(tmp_path)
    port = free_port()
    with RedisServer(
        f"tls-port {port}",
        f"tls-ca-cert-file {tmp_path / 'ca.pem'}",
        f"tls-cert-file {tmp_path / 'server.pem'}",
        f"tls-key-file {tmp_path / 'server.key'}",
    ) as server:
        yield server, port


@pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
async def test_tls_with_certificates_on_both_sides(
    encrypted: tuple[RedisServer, int], tmp_path: Path
) -> None:
    server, port = encrypted
    own = f"cert_file={tmp_path / 'server.pem'}&key_file={tmp_path / 'server.key'}"
    trusted = f"ca_file={tmp_path / 'ca.pem'}&{own}"
    await works(server, f"rediss://127.0.0.1:{port}?{trusted}")
    await works(server, f"rediss://localhost:{port}?{trusted}&verify=ca")
    await works(server, f"rediss://127.0.0.1:{port}?{own}&verify=none")
    for refused in (f"127.0.0.1:{port}?{own}", f"localhost:{port}?{trusted}"):
        broker = redis_broker(server, url=f"rediss://{refused}", interval_s=0.05)
        broker.bind(Notes())
        await broker.start()
        await until(lambda broker=broker: broker.circuit_openings)  # type: ignore[misc]
        await broker.close()


async def test_closing_while_connecting_leaves_nothing() -> None:
    """A server that accepts and never answers."""
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(
        lambda _reader, writer: accepted.append(writer), "127.0.0.1", 0
    )
    port = silent.sockets[0].getsockname()[1]
    server = RedisServer()
    broker = redis_broker(server, url=f"redis://:p@127.0.0.1:{port}", timeout_s=5.0)
    broker.bind(Notes())
    await broker.start()
    publishing = asyncio.create_task(broker.publish([draft("x")]))
    await until(lambda: len(accepted) >= 2)
    await broker.close()
    (answer,) = await publishing
    assert str(answer) == "the broker is closed"
    for writer in accepted:
        writer.transport.abort()
    silent.close()
    server.close()


@pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
async def test_tls_with_a_user_of_few_rights(tmp_path: Path) -> None:
    _write_certificates(tmp_path)
    port = free_port()
    with RedisServer(
        f"tls-port {port}",
        f"tls-ca-cert-file {tmp_path / 'ca.pem'}",
        f"tls-cert-file {tmp_path / 'server.pem'}",
        f"tls-key-file {tmp_path / 'server.key'}",
        f'user node on ">{PASSWORD}" {RIGHTS}',
    ) as server:
        own = f"ca_file={tmp_path / 'ca.pem'}&cert_file={tmp_path / 'server.pem'}"
        place = f"127.0.0.1:{port}?{own}&key_file={tmp_path / 'server.key'}"
        broker = redis_broker(server, url=f"rediss://node:{QUOTED}@{place}", keys=None)
        broker.bind(notes := Notes())
        await broker.start()
        await ready(broker)
        await broker.subscribe("a.b")
        await broker.publish([draft("x")])
        assert await broker.settled()
        assert ids(notes.events("a.b")) == ["x"]
        await broker.close()
        assert server.ask("ACL", "LOG") == []
        refused = redis_broker(server, url=f"rediss://node:wrong@{place}", interval_s=0.05)
        refused.bind(Notes())
        await refused.start()
        await until(lambda: refused.circuit_openings)
        assert refused.problem() is not None
        await refused.close()
