"""Where is an event kept? This file: the scripts by which its way into the archive is gone."""

from pubsub.redis_scripts import Script, read_script


class ArchiveScripts:
    """The scripts, read from the package; headers there list KEYS and ARGV."""

    def __init__(self) -> None:
        numbers, queue = map(read_script, ("numbers", "queue"))
        self.collect = Script("collect", numbers + queue + read_script("collect"))
        self.backlog = Script("backlog", read_script("backlog"))
        self.share = Script("share", numbers + read_script("share"))
