"""How does an event get its position and reach every node? This file: what can go wrong on the way.

PubSubError
├── BrokerUnavailable   the broker cannot be reached, or did not answer in time; try again
├── NotReplicated       published, but on too few replicas; try again with the same id
├── TooManyChannels     the broker keeps no further channel
├── ClaimEnded          who wanted to fire a schedule was too late to do so
├── Cancelled           a schedule was cancelled before it was fired
├── PositionRejected    a text is not a position (also a ValueError)
├── ArchiveUnavailable  the archive cannot be reached, or did not answer in time; try again
│   ├── ArchiveBehind    what is asked for is on its way into the archive; try again
│   └── ArchiveRefused   the archive is not one that this version can use; trying again is no use
├── ArchiveUrlRejected  a text is not the address of an archive (also a ValueError)
├── RedisUrlRejected    a text is not the address of a Redis (also a ValueError)
└── JunkReceived        bytes from the backplane that no node wrote (also a ValueError)
"""


class PubSubError(Exception):
    """Base of all errors of this room."""


class BrokerUnavailable(PubSubError):
    """The broker cannot be reached or missed the deadline; nothing was acknowledged."""


class NotReplicated(PubSubError):
    """Published, but too few replicas have it yet; the same publish again says when they do.

    Subscribers get the event, unless the master dies before any replica has it.
    """


class TooManyChannels(PubSubError):
    """The broker is at its bound of channels and makes no new one."""


class ClaimEnded(PubSubError):
    """Nothing was published, since the claim on the schedule has ended; another one may have it."""


class Cancelled(PubSubError):
    """Nothing was published, since the schedule was cancelled."""


class PositionRejected(PubSubError, ValueError):
    """A text that should be a position is none."""


class ArchiveUnavailable(PubSubError):
    """The archive cannot be reached or missed the deadline; a write may have been done."""


class ArchiveBehind(ArchiveUnavailable):
    """Events that are asked for are on their way into the archive and did not come in time."""


class ArchiveRefused(ArchiveUnavailable):
    """The archive was written by a later version, or by something else; it stays as it is."""


class ArchiveUrlRejected(PubSubError, ValueError):
    """A text that should be the address of an archive is none."""


class RedisUrlRejected(PubSubError, ValueError):
    """A text that should be the address of a Redis is none."""


class JunkReceived(PubSubError, ValueError):
    """What came from the backplane is not what a node of this version sends or stores."""
