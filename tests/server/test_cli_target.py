import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from config.settings import DEV_KEY, Settings
from server.cli_output import CommandFailed
from server.cli_target import (
    Credential,
    Target,
    Unreachable,
    parse_url,
    problem_of,
    target_of,
)


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "prefix", "shown"),
    [
        ("http://127.0.0.1:8901", False, "127.0.0.1", 8901, "", "http://127.0.0.1:8901"),
        ("http://[::1]:8901/", False, "::1", 8901, "", "http://[::1]:8901"),
        ("https://a.example", True, "a.example", 443, "", "https://a.example"),
        ("HTTPS://A.example/x/", True, "a.example", 443, "/x", "https://a.example/x"),
        ("http://a.example:443", False, "a.example", 443, "", "http://a.example:443"),
    ],
)
def test_a_url_says_where_the_server_is(
    url: str, secure: bool, host: str, port: int, prefix: str, shown: str
) -> None:
    target = parse_url(url)
    assert target == Target(secure=secure, host=host, port=port, prefix=prefix)
    assert target.url == shown


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ws://127.0.0.1:8000",
        "http://",
        "http://a:0",
        "http://a:99999",
        "http://a:x",
        "http://[::1",
        "http://u:p@a",
        "http://a?x=1",
        "http://a#x",
        "http://a/x y",
        "http://a/\u00e9",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(CommandFailed, match="--url"):
        parse_url(url)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
        ("events", "http://events:8000"),
    ],
)
def test_settings_say_where_the_server_is(host: str, url: str) -> None:
    assert target_of(Settings(host=host)).url == url


def test_any_port_is_no_address() -> None:
    with pytest.raises(CommandFailed, match="--url"):
        target_of(Settings(port=0))


def test_a_name_that_nobody_has_cannot_be_reached() -> None:
    with pytest.raises(Unreachable, match=r"cannot reach http://nobody\.invalid"):
        parse_url("http://nobody.invalid").connect()
    with pytest.raises(Unreachable, match="cannot reach"):
        parse_url(f"http://{'a' * 70}.invalid").connect()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that nobody else trusts, and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, found = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem"
    subprocess.run(
        [*command.split(), "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True
    )
    found.write_text(found.read_text() + key.read_text())
    return found


def tls_connect(certificate: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def serve() -> None:
        peer, _ = listening.accept()
        try:
            with context.wrap_socket(peer, server_side=True) as wrapped:
                wrapped.sendall(b"hello")
        except OSError:
            peer.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            port = listening.getsockname()[1]
            with parse_url(f"https://localhost:{port}").connect() as sock:
                return sock.recv(5)
        finally:
            thread.join()


def test_tls_is_used_and_certificates_are_checked(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unreachable, match=r"(?i)certificate"):
        tls_connect(certificate, monkeypatch, trusted=False)
    assert tls_connect(certificate, monkeypatch, trusted=True) == b"hello"


# ---- credentials


def test_a_credential_comes_from_a_file_the_command_line_or_development(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  k.secret\n")
    assert Credential(file=file, dev=True).headers() == {"Authorization": "Bearer k.secret"}
    assert Credential(text="a.b.c").read() == "a.b.c"
    assert Credential(dev=True).read() == DEV_KEY
    assert Credential().headers() == {}


@pytest.mark.parametrize("text", ["", " \n", "two words", "k.s\r\nX-Evil: 1", "k.\u00e9", "k.\0"])
def test_what_cannot_stand_in_a_header_is_no_credential(text: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    for credential in (Credential(text=text), Credential(file=file)):
        with pytest.raises(CommandFailed, match="neither an API key nor a token") as caught:
            credential.read()
        assert "two words" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="cannot be read: No such file"):
        Credential(file=tmp_path / "none").read()
    file = tmp_path / "key"
    file.write_bytes(b"\xff")
    with pytest.raises(CommandFailed, match="neither an API key"):
        Credential(file=file).read()


# ---- refusals


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"code":"forbidden","detail":"no","title":"Forbidden"}', "forbidden: no"),
        (b'{"code":"forbidden"}', "forbidden"),
        (b'{"title":"Bad Gateway"}', "Bad Gateway"),
        (b'{"code":7}', "HTTP status 502"),
        (b"<html>", "HTTP status 502"),
        (b"\xff", "HTTP status 502"),
        (b"{}", "HTTP status 502"),
        (b"[" * 100_000, "HTTP status 502"),
    ],
)
def test_a_refusal_says_what_the_server_said(body: bytes, text: str) -> None:
    assert str(problem_of(502, body)) == text
