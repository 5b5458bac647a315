"""Who is present in a channel, over all nodes? This file: the scripts that Redis runs for it."""

from typing import Final

from pubsub.redis_scripts import Script, read_script

# Stand before each of the others.
_SHARED: Final = ("numbers", "presence")


class PresenceScripts:
    """The scripts, read from the package; headers there list KEYS and ARGV."""

    def __init__(self) -> None:
        shared = "".join(map(read_script, _SHARED))
        self.enter = Script("enter", shared + read_script("enter"))
        self.depart = Script("depart", shared + read_script("depart"))
        self.left = Script("left", shared + read_script("left"))
        self.adopt = Script("adopt", shared + read_script("adopt"))
        self.members = Script("members", shared + read_script("members"))
        self.versions = Script("versions", shared + read_script("versions"))
        self.lease = Script("lease", shared + read_script("lease"))
        self.bury = Script("bury", shared + read_script("bury"))
