"""A proxy in front of a Redis: it knows which connections listen, and makes them deaf."""

from fault_proxy import FaultProxy, Link


class MutingProxy(FaultProxy):
    """Passes bytes on to a port of this machine; connections that subscribe are told apart.

    While `mute` is set, what Redis sends to connections that listen is swallowed: cut one way.
    """

    def __init__(self, target: int, *, seed: int = 0) -> None:
        super().__init__(target, seed=seed)
        self.mute = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def heal(self) -> None:
        self.mute = False
        super().heal()

    def inject(self, data: bytes) -> None:
        """Send bytes to all connections that listen, as if Redis did."""
        for link in self.links:
            if link.listens:
                link.near.write(data)

    def passes_up(self, link: Link, data: bytes) -> bool:
        """Note who subscribes."""
        link.listens = link.listens or b"SUBSCRIBE" in data
        return True

    def passes_down(self, link: Link, data: bytes) -> bool:
        """Let nothing through to who listens, while it is mute."""
        return not (link.listens and self.mute)
