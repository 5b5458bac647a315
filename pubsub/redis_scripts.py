"""How does an event get its position? This file: the scripts that Redis runs for it."""

from hashlib import sha1
from importlib.resources import files
from typing import Final

# Stand before each of the others.
_SHARED: Final = ("numbers", "channel")
_NAMES: Final = ("publish", "open", "leave", "history", "contradict", "purge", "tops", "settle")
# These put into the archive's queue.
_QUEUEING: Final = ("publish", "purge")


class Script:
    """A script: its text, and the digest by which Redis knows it once it was loaded."""

    __slots__ = ("digest", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisScripts:
    """All scripts, read from the package; headers there list KEYS and ARGV."""

    def __init__(self) -> None:
        shared = "".join(map(read_script, _SHARED))
        queue, ids = read_script("queue"), read_script("ids")
        each = {
            name: Script(
                name,
                shared
                + (queue if name in _QUEUEING else "")
                + (ids if name == "publish" else "")
                + read_script(name),
            )
            for name in _NAMES
        }
        self.publish = each["publish"]
        self.open = each["open"]
        self.leave = each["leave"]
        self.history = each["history"]
        self.contradict = each["contradict"]
        self.purge = each["purge"]
        self.tops = each["tops"]
        self.settle = each["settle"]


def read_script(name: str) -> str:
    """Return a script without comments, which would only cost memory in Redis."""
    text = (files("pubsub") / f"{name}.lua").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("--"))
