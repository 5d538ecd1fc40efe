"""Make channels, and notice when theirs are out of date: TLS files that were replaced.

A channel cannot change its certificates, so a new one takes its place; the old one is closed once the last stream on it
has ended. Works for both kinds of channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from grpc_etcd.etcd import endpoints
from grpc_etcd.etcd.endpoints import Tls
from grpc_etcd.etcd.errors import UnreadableFile

# How often files are looked at, at most; they are few and the look is cheap. Arbitrary.
LOOK_SECONDS = 10.0
SUSPICIOUS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the channels depend on and that may change: when they differ, other channels are needed."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Dialer:
    """Where to connect to, one gRPC target for each member, and how."""

    targets: tuple[str, ...]
    tls: Tls | None

    def facts(self) -> Facts:
        """Look up the facts."""
        tls = self.tls or Tls()
        return Facts(read(tls.ca), read(tls.cert), read(tls.key))

    @property
    def may_change(self) -> bool:
        """Whether looking again can bring anything new."""
        return bool(self.tls and (self.tls.ca or self.tls.cert))

    def sync_channel(self, target: str, facts: Facts) -> grpc.Channel:
        """Make a channel for threads."""
        options = endpoints.make_options(self.tls, target)
        if self.tls is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, make_credentials(facts), options)

    def aio_channel(self, target: str, facts: Facts) -> grpc.aio.Channel:
        """Make a channel for asyncio."""
        options = endpoints.make_options(self.tls, target)
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, make_credentials(facts), options)


class RecheckSchedule:
    """When to look at the facts again: now and then, and soon after something failed."""

    def __init__(self) -> None:
        self._looked = -LOOK_SECONDS
        self._suspicious = False

    def is_due(self, now: float) -> bool:
        """Whether it is time to look."""
        return now - self._looked >= (SUSPICIOUS_SECONDS if self._suspicious else LOOK_SECONDS)

    def suspect(self) -> None:
        """Record that a call failed for lack of a connection."""
        self._suspicious = True

    def looked(self, now: float) -> None:
        """Record that the facts are known."""
        self._looked = now
        self._suspicious = False


def make_dialer(where: str | Sequence[str], tls: Tls | None) -> Dialer:
    """Return the dialer of some endpoints; an https endpoint means TLS with public authorities."""
    return Dialer(endpoints.make_targets(where), tls or (Tls() if endpoints.wants_tls(where) else None))


def make_credentials(facts: Facts) -> grpc.ChannelCredentials:
    """Return gRPC's form of the TLS files."""
    return grpc.ssl_channel_credentials(facts.ca, facts.key, facts.cert)


PEM = "-----BEGIN "


def read(path: Path | str | None) -> bytes | None:
    """Read a TLS file. What is PEM itself, as an environment variable may hold it, is taken as it is."""
    if isinstance(path, str) and path.lstrip().startswith(PEM):
        return path.encode()
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise UnreadableFile(f"a TLS file cannot be read: {error}") from error
