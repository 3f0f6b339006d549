"""Where webhooks may go: to the internet's own addresses over TLS, and to hosts that the application allows besides."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.parse import urlsplit

from .errors import WebhookRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PRINTABLE = re.compile(r"[!-\[\]-~]+")
"""What a URL is written in, without the backslash, which browsers take for a slash."""
HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")

# Written out, since what `ipaddress` calls global differs from one Python to the next.
NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        # IANA's registry of special-purpose addresses, and multicast
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # its like for IPv6, as far as it lies within `GLOBAL_UNICAST`: 2002::/16 has any IPv4 address in it (6to4)
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        # what answers a virtual machine of Azure's about itself; other clouds' lie within the above
        "168.63.129.16/32",
    )
)
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")


class AllowedHosts:
    """The hosts that webhooks may go to although they are not public, and without TLS.

    :param entries: names, addresses, and networks such as ``10.0.0.0/8``.
    :raises ValueError: one is none of these.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._networks: list[Network] = []
        for entry in entries:
            try:
                self._networks.append(ip_network(entry, strict=False))
            except ValueError:
                name = entry.lower().rstrip(".")
                if not HOST.fullmatch(name):
                    raise ValueError(f"a host's name, an address or a network, which {entry!r} is not") from None
                self._names.add(name)

    def allow(self, host: str, address: Address) -> bool:
        return host in self._names or any(address in network for network in self._networks)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a webhook goes.

    :param host: a name or an address, without brackets.
    :param path: with the query, as it stands in the request.
    """

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Self:
        """The one that a URL names, which is not looked up yet.

        :raises WebhookRefused: no webhook is delivered to such a URL, as it is written.
        """
        try:
            parts = urlsplit(url if PRINTABLE.fullmatch(url) else "")
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise WebhookRefused("The URL of the webhook is malformed.") from None
        if parts.scheme not in ("http", "https") or not _is_host(host):
            raise WebhookRefused("The URL of a webhook is https://host/path, in ASCII.")
        if "@" in parts.netloc:
            raise WebhookRefused("The URL of a webhook has no user name and no password.")
        secure = parts.scheme == "https"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(secure, host, (443 if secure else 80) if port is None else port, path)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    def addresses(self, allowed: AllowedHosts) -> list[str]:
        """Look the host up.

        :raises WebhookRefused: one of its addresses is not to be reached this way. One is enough: which of them
            is reached in the end is for the network to say.
        :raises OSError: it has none, or nobody knows.
        """
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        for address in addresses:
            if allowed.allow(self.host, _without_wrapping(ip_address(address))):
                continue
            if not self.secure:
                raise WebhookRefused("The URL of a webhook begins with https://.", diagnosis=self.authority)
            if not is_public(address):
                diagnosis = f"{self.authority} is at {address}"
                raise WebhookRefused("The webhook's host is not public.", reason="address", diagnosis=diagnosis)
        return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's, and of nothing nearer.

    An IPv4 address within an IPv6 one (IPv4-mapped, NAT64) is judged by itself.
    """
    plain = _without_wrapping(ip_address(address))
    if not plain.is_global or any(plain in network for network in NOT_PUBLIC):
        return False
    return isinstance(plain, IPv4Address) or plain in GLOBAL_UNICAST


def _is_host(host: str) -> bool:
    with suppress(ValueError):
        return not getattr(ip_address(host), "scope_id", None)
    return bool(HOST.fullmatch(host))


def _without_wrapping(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
