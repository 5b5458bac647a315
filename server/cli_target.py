"""Who is connected here? This file: how the commands that are clients find and reach a server."""

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from config.settings import DEV_KEY, Settings
from server.cli_output import CommandFailed

CONNECT_TIMEOUT_S: Final = 10.0
_MOST_CREDENTIAL_BYTES: Final = 16_384


class Unreachable(CommandFailed):
    """There is no connection to be had; later there may be."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server: where it is, and what goes before `/v1` in its paths."""

    secure: bool
    host: str
    port: int
    prefix: str

    @property
    def netloc(self) -> str:
        """Host and port as they stand in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The server's address as a person knows it."""
        return f"http{'s' if self.secure else ''}://{self.netloc}{self.prefix}"

    def connect(self) -> socket.socket:
        """Return a new connection, through TLS where meant; never through a proxy.

        Raises Unreachable. Reads and writes time out after CONNECT_TIMEOUT_S.
        """
        try:
            plain = socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not self.secure:
                    return plain
                context = ssl.create_default_context()
                return context.wrap_socket(plain, server_hostname=self.host)
            except BaseException:
                plain.close()
                raise
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreachable(f"cannot reach {self.url}: {reason}") from None


def parse_url(text: str) -> Target:
    """Return the server at a URL such as `https://events.example.com`; raises CommandFailed."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    odd = parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in ("http", "https") or not host or port == 0 or odd:
        raise CommandFailed(f"--url {text}: write http://HOST:PORT or https://HOST")
    # It becomes part of a request line.
    if not (parts.path.isascii() and parts.path.isprintable() and " " not in parts.path):
        raise CommandFailed(f"--url {text}: the path holds characters that have to be escaped")
    secure = parts.scheme == "https"
    return Target(
        secure=secure,
        host=host,
        port=port or (443 if secure else 80),
        prefix=parts.path.rstrip("/"),
    )


def target_of(settings: Settings) -> Target:
    """Return the server that runs with these settings on this machine; raises CommandFailed."""
    if settings.port == 0:
        raise CommandFailed("port is 0, so any may be in use: say where the server is with --url")
    host = settings.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        # Listening on every address is not an address to go to.
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return Target(secure=False, host=host, port=settings.port, prefix="")


class Credential:
    """An API key or a token, and where it comes from; a file is read anew each time."""

    __slots__ = ("_dev", "_file", "_text")

    def __init__(self, *, text: str | None = None, file: Path | None = None, dev: bool = False):
        self._text = text
        self._file = file
        self._dev = dev

    def read(self) -> str | None:
        """Return the key or token, None if there is none; raises CommandFailed."""
        text, source = self._text, "--key"
        if self._file is not None:
            source = f"--key-file {self._file}"
            text = _content(self._file, source)
        elif text is None:
            return DEV_KEY if self._dev else None
        text = text.strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise CommandFailed(f"{source}: this is neither an API key nor a token")
        return text

    def headers(self) -> dict[str, str]:
        """Return the header that shows it, or none; raises CommandFailed."""
        text = self.read()
        return {} if text is None else {"Authorization": f"Bearer {text}"}


def _content(path: Path, source: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_CREDENTIAL_BYTES).decode()
    except OSError as error:
        raise CommandFailed(f"{source}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise CommandFailed(f"{source}: this is neither an API key nor a token") from None


class Problem(msgspec.Struct):
    """What a server says of what it refuses: a problem (RFC 9457), or the error of one event."""

    code: str = ""
    detail: str = ""
    message: str = ""
    title: str = ""

    def __str__(self) -> str:
        text = self.detail or self.message or self.title
        return f"{self.code}: {text}" if self.code and text else self.code or text


def problem_of(status: int, body: bytes) -> Problem:
    """Return what a refusal says; a server that is not ours says no more than its status."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = Problem()
    return problem if str(problem) else Problem(title=f"HTTP status {status}")
