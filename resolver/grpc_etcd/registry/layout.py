"""What every registry format must say of itself.

A layout is a named, versioned codec between `Endpoint` and the bytes of one etcd key and value. It also says its client
limits, since real clients lose events that come too close together. Layouts are strict about what they write and as
tolerant in what they read as the Go readers are. They never raise: what cannot be written or read is a `Rejected`.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from grpc_etcd.registry.endpoint import Endpoint


class KeyValue(NamedTuple):
    """The bytes of one record, without lease and revisions."""

    key: bytes
    value: bytes


# A record may be as large as etcd allows, and why it is rejected is logged and counted in `stats()`. Arbitrary.
MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why something cannot be written or read: one sentence for the person who can fix it, cut where it is long."""

    reason: str

    def __post_init__(self) -> None:
        if len(self.reason) > MOST_CHARACTERS:
            object.__setattr__(self, "reason", f"{self.reason[:MOST_CHARACTERS]}…")


CANNOT_DISABLE = Rejected("this format cannot mark an endpoint as disabled; deregister the endpoint instead")


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """The client limits of a layout: writers keep to it, per service.

    `keys_per_second` of None is no limit. With `flush_key`, a writer puts the key of `Layout.settled` once a burst
    (two or more events of a service within `BURST_SECONDS`) has been quiet for `SETTLE_SECONDS`, and once more when it
    has been quiet for `HEAL_SECONDS` after that.
    """

    keys_per_transaction: int = 128
    keys_per_second: int | None = None
    flush_key: bool = False


BURST_SECONDS = 1.0
SETTLE_SECONDS = 0.5
# A client that gets no CPU time just when the flush key is written drops that event as well, and keeps an older state
# until the next (seen with Jupiter 0.2.7). Arbitrary: longer than a busy machine holds up a process.
HEAL_SECONDS = 5.0
FLUSHES = 2  # flush keys after a burst


class Layout(Protocol):
    """A registry format. Instances are immutable; their settings (a prefix, a mode) are constructor arguments."""

    @property
    def name(self) -> str:
        """Return the layout's name, as in `spec.layouts` of a GrpcService."""

    @property
    def limits(self) -> WriteLimits:
        """Return the client limits of this layout."""

    @property
    def can_disable(self) -> bool:
        """Return whether the format can store `enable=False`; if not, `encode` rejects it: deregister instead."""

    def prefix(self, service: str) -> bytes:
        """Return the key prefix that a reader of `service` lists and watches; it ends with the format's separator."""

    def encode(self, service: str, endpoint: Endpoint) -> KeyValue | Rejected:
        """Encode `endpoint` as the format's own writers do, byte for byte."""

    def decode(self, service: str, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Decode a record below `prefix(service)`; None: it is not an endpoint's record, which is not an error."""

    def settled(self, service: str, cluster: str) -> KeyValue | None:
        """Return the flush key's record: below the prefix, ignored by readers; None if the layout needs none."""
