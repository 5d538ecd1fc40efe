"""Make channels, and notice when one is out of date: TLS files that were replaced, names that lead elsewhere.

A channel cannot change its certificates or addresses, so a new one takes its place; the old one is closed once the last
stream on it has ended. Works for both kinds of channel; resolving names is left to the drivers, since it may block.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from grpc_etcd.etcd import endpoints
from grpc_etcd.etcd.endpoints import HostPort, Tls
from grpc_etcd.etcd.errors import AuthFailed, Unavailable

# How often files and names are looked at, at most; they are few and the look is cheap. Arbitrary.
LOOK_SECONDS = 10.0
SUSPICIOUS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a channel depends on: when they differ, another channel is needed."""

    target: str
    files: tuple[bytes | None, bytes | None, bytes | None]


@dataclass(frozen=True, slots=True)
class Dialer:
    """Where to connect to, and how."""

    endpoints: tuple[HostPort, ...] | str
    tls: Tls | None

    def facts(self) -> Facts:
        """Look up the facts. Blocks where several names have to be resolved."""
        return Facts(self._target(), self._files())

    @property
    def may_change(self) -> bool:
        """Whether looking again can bring anything new."""
        return self.may_block or bool(self.tls and (self.tls.ca or self.tls.cert))

    @property
    def may_block(self) -> bool:
        """Whether looking resolves names."""
        several = not isinstance(self.endpoints, str) and len(self.endpoints) > 1
        return several and not all(endpoint.is_address for endpoint in self.endpoints)  # type: ignore[union-attr]

    def sync_channel(self, facts: Facts) -> grpc.Channel:
        """Make a channel for threads."""
        options = endpoints.make_options(self.endpoints, self.tls)
        if self.tls is None:
            return grpc.insecure_channel(facts.target, options)
        return grpc.secure_channel(facts.target, grpc.ssl_channel_credentials(*ssl_arguments(facts)), options)

    def aio_channel(self, facts: Facts) -> grpc.aio.Channel:
        """Make a channel for asyncio."""
        options = endpoints.make_options(self.endpoints, self.tls)
        if self.tls is None:
            return grpc.aio.insecure_channel(facts.target, options)
        return grpc.aio.secure_channel(facts.target, grpc.ssl_channel_credentials(*ssl_arguments(facts)), options)

    def _target(self) -> str:
        if isinstance(self.endpoints, str):
            return self.endpoints
        if not self.may_block:
            return endpoints.make_target(self.endpoints)
        return endpoints.make_target([each for endpoint in self.endpoints for each in resolve(endpoint)] or never())

    def _files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        tls = self.tls or Tls()
        return read(tls.ca), read(tls.cert), read(tls.key)


class Lookout:
    """When to look at the facts again: now and then, and soon after something failed."""

    def __init__(self) -> None:
        self._looked = -LOOK_SECONDS
        self._suspicious = False

    def is_due(self, now: float) -> bool:
        """Whether it is time to look."""
        return now - self._looked >= (SUSPICIOUS_SECONDS if self._suspicious else LOOK_SECONDS)

    def suspect(self) -> None:
        """Note that a call failed for want of a connection."""
        self._suspicious = True

    def looked(self, now: float) -> None:
        """Note that the facts are known."""
        self._looked = now
        self._suspicious = False


def make_dialer(where: str | Sequence[str], tls: Tls | None) -> Dialer:
    """Return the dialer of some endpoints; an https endpoint means TLS with the system's certificates."""
    return Dialer(endpoints.parse_endpoints(where), tls or (Tls() if endpoints.wants_tls(where) else None))


def ssl_arguments(facts: Facts) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return CA, key and certificate, in gRPC's order."""
    ca, cert, key = facts.files
    return ca, key, cert


def read(path: Path | str | None) -> bytes | None:
    """Read a TLS file."""
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise AuthFailed(f"a TLS file cannot be read: {error}") from error


def resolve(endpoint: HostPort) -> list[HostPort]:
    """Return all addresses of an endpoint; none when its name is unknown, for others may still be reached."""
    if endpoint.is_address:
        return [endpoint]
    try:
        found: list[Any] = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [HostPort(address[4][0], endpoint.port) for address in found]


def never() -> list[HostPort]:
    """None of the names is known."""
    raise Unavailable("none of the endpoints' names can be resolved")
