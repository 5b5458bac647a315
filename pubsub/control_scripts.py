"""How do nodes act as one? This file: the scripts that Redis runs for it."""

from pubsub.redis_scripts import Script, read_script


class ControlScripts:
    """The scripts, read from the package; headers there list KEYS and ARGV."""

    def __init__(self) -> None:
        numbers, control = map(read_script, ("numbers", "control"))
        self.order = Script("order", numbers + read_script("order"))
        self.announce = Script("announce", read_script("announce"))
        self.take = Script("take", numbers + read_script("take"))
        self.notify = Script("notify", numbers + control + read_script("notify"))
        self.notices = Script("notices", numbers + control + read_script("notices"))
