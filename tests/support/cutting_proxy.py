"""A proxy in front of a server that speaks HTTP: it notes requests, and forbids some."""

import re

from fault_proxy import FaultProxy, Link

_REQUEST = re.compile(rb"([A-Z]+ \S+) HTTP/1\.1\r\n")


class CuttingProxy(FaultProxy):
    """Passes bytes on to the port `target` of this machine, unless it is told otherwise.

    `requests` has the method and the address of each HTTP request that came, in their order. One
    that begins with `forbidden` (such as `"GET /v1/ws"`) ends its connection instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forbidden: str | None = None
        self.requests: list[str] = []

    @property
    def origin(self) -> str:
        """The address of a page that comes through here."""
        return f"http://127.0.0.1:{self.port}"

    def passes_up(self, link: Link, data: bytes) -> bool:
        """Note a request; say whether it may go on."""
        if (match := _REQUEST.match(data)) is None:
            return True
        request = match[1].decode("latin-1")
        self.requests.append(request)
        return self.forbidden is None or not request.startswith(self.forbidden)
