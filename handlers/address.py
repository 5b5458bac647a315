"""How do bytes come in? This file: from whom, when proxies stand between (pure)."""

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]


def networks(texts: Iterable[str]) -> Networks:
    """Return the networks that `texts` name; raises ValueError."""
    return tuple(ip_network(text) for text in texts)


def client_address(peer: str, forwarded: Sequence[str], trusted: Networks) -> str:
    """Return the address of the client.

    That is the peer, unless it is a trusted proxy; then the right-most entry of the lines of
    X-Forwarded-For that no trusted proxy stands for. Everything further left is the client's own
    word, so it is never looked at. An entry that is no address ends the search: what then counts
    is the proxy that passed it on.
    """
    address = _read(peer)
    if address is None or not trusted or not _in(address, trusted):
        return peer if address is None else str(address)
    entries = [entry for line in forwarded for entry in line.split(",")]
    for entry in reversed(entries):
        hop = _read(_without_port(entry.strip()))
        if hop is None:
            break
        address = hop
        if not _in(hop, trusted):
            break
    return str(address)


def _read(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket for both families shows IPv4 peers in IPv6 form.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _in(address: IPv4Address | IPv6Address, trusted: Networks) -> bool:
    return any(address in network for network in trusted)


def _without_port(entry: str) -> str:
    """Some proxies write `192.0.2.1:4711` and `[2001:db8::1]:4711`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, port = entry.partition(":")
    return host if colon and port.isdigit() and "." in host else entry
