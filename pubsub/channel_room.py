"""Where are events kept? This file: whether one more channel may be made (pure)."""


class ChannelRoom:
    """Keeps the number of channels within a bound, as far as one node can know it.

    Channels lie in many partitions, which no script can count together. So a node counts them now
    and then, adds what it makes itself, and reserves a place for each call that may make one.
    Several nodes may together pass the bound by what they make between two counts. 0 is no bound.
    """

    __slots__ = ("_asked", "known", "made", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.known = 0
        # All that this node ever made.
        self.made = 0
        self._asked = 0

    def ask(self) -> bool:
        """Reserve a place if there is one; whoever got one calls `done`."""
        if self.most and self.known + self._asked >= self.most:
            return False
        self._asked += 1
        return True

    def done(self, made: bool) -> None:
        """Give a reservation back; `made` says whether a channel was made."""
        self._asked -= 1
        self.known += made
        self.made += made

    def count(self, channels: int, made_before: int) -> None:
        """Take a count of all channels that began when this node had made `made_before`.

        What it has made since may have been counted or not: it is taken as not, so that the bound
        holds; the next count knows.
        """
        self.known = channels + self.made - made_before
