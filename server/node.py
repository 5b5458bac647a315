"""Who is connected here, and what may they do? This file: the node as a whole."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from config.rules import ChannelRules
from config.settings import Settings
from pubsub.archive import Archive
from pubsub.broker import Broker
from pubsub.chronicle import Chronicle, Coming
from pubsub.control import Control
from pubsub.memory_control import MemoryControl
from pubsub.presence import PresenceStore
from pubsub.scheduler import Scheduler
from server.all_nodes import AllNodes
from server.auth import Auth
from server.codec import ValueLimits
from server.commands import Commands
from server.control import TOPICS, NodeControl
from server.hub import LINGER_S, Hub
from server.lifecycle import Lifecycle
from server.limits import Occupancy, Rates
from server.metrics import Metrics
from server.publishing import Publishing
from server.reads import SharedReads
from server.scheduling import Scheduling
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
    chronicle: Chronicle
    presence: PresenceStore
    control: Control
    auth: Auth
    occupancy: Occupancy
    rates: Rates
    metrics: Metrics
    timetable: Timetable
    hub: Hub
    publishing: Publishing
    scheduling: Scheduling
    subscribing: Subscribing
    commands: Commands
    lifecycle: Lifecycle
    nodes: AllNodes
    new_id: Callable[[], str]


def assemble(
    settings: Settings,
    *,
    name: str,
    rules: ChannelRules,
    broker: Broker,
    presence: PresenceStore,
    auth: Auth,
    metrics: Metrics,
    timetable: Timetable,
    new_id: Callable[[], str],
    control: Control | None = None,
    archive: Archive | None = None,
    coming: Coming | None = None,
    scheduler: Scheduler | None = None,
    linger_s: float = LINGER_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Node:
    """Return a node over a broker and a presence store; `rules` are the ones that those share too.

    `control` carries orders and notices between nodes; without it the node is alone. It is bound
    here; its owner starts and closes it. `archive` holds what is older than the broker's history,
    `coming` is what brings events there, and `scheduler` publishes what is to be published later;
    their owner starts and closes them. `linger_s` is how long a feed outlives its last
    subscription, `sleep` how retries wait.
    """
    limits = settings.limits
    members = limits.members_per_reply
    chronicle = Chronicle(
        broker, archive, rules, coming, wait_s=settings.broker.call_timeout_s, sleep=sleep
    )
    hub = Hub(
        broker,
        SharedReads(chronicle),
        presence,
        rules,
        metrics,
        timetable,
        members_per_reply=members,
        linger_s=linger_s,
        sleep=sleep,
    )
    publishing = Publishing(broker, rules, metrics, new_id, hub.feeds)
    subscribing = Subscribing(
        hub, broker, chronicle, presence, metrics, members_per_reply=members, sleep=sleep
    )
    commands = Commands(
        auth=auth,
        chronicle=chronicle,
        presence=presence,
        rules=rules,
        publishing=publishing,
        subscribing=subscribing,
        limits=limits,
    )
    lifecycle = Lifecycle(settings.drain)
    if control is None:
        control = MemoryControl(node=name, topics=TOPICS)
    control.bind(
        NodeControl(auth=auth, hub=hub, commands=commands, lifecycle=lifecycle, metrics=metrics)
    )
    metrics.bind(
        subscriptions=hub.subscriptions, channels=lambda: len(hub.feeds), events_held=hub.held
    )
    return Node(
        name=name,
        settings=settings,
        rules=rules,
        values=ValueLimits.of(limits),
        broker=broker,
        chronicle=chronicle,
        presence=presence,
        control=control,
        auth=auth,
        occupancy=Occupancy(limits),
        rates=Rates(limits, [key.id for key in settings.keys]),
        metrics=metrics,
        timetable=timetable,
        hub=hub,
        publishing=publishing,
        scheduling=Scheduling(publishing, scheduler, limits),
        subscribing=subscribing,
        commands=commands,
        lifecycle=lifecycle,
        nodes=AllNodes(control, auth, hub, sleep=sleep),
        new_id=new_id,
    )
