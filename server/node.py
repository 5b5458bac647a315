"""Who is connected here, and what may they do? This file: the node as a whole."""

from collections.abc import Callable
from dataclasses import dataclass

from config.rules import ChannelRules
from config.settings import Settings
from pubsub.broker import Broker
from pubsub.presence import PresenceStore
from server.auth import Auth
from server.codec import ValueLimits
from server.commands import Commands
from server.hub import Hub
from server.lifecycle import Lifecycle
from server.limits import Occupancy, Rates
from server.metrics import Metrics
from server.publishing import Publishing
from server.subscribing import Subscribing
from server.timetable import Timetable


@dataclass(slots=True, frozen=True)
class Node:
    """One server process, put together by the composition root; holds no state of its own."""

    name: str
    settings: Settings
    rules: ChannelRules
    values: ValueLimits
    broker: Broker
    presence: PresenceStore
    auth: Auth
    occupancy: Occupancy
    rates: Rates
    metrics: Metrics
    timetable: Timetable
    hub: Hub
    publishing: Publishing
    subscribing: Subscribing
    commands: Commands
    lifecycle: Lifecycle
    new_id: Callable[[], str]
