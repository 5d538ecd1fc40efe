"""A complete set of a service's endpoints at one revision: the only thing that readers publish.

`SnapshotBuilder` takes records (first a full listing, then changes) and cuts immutable `Snapshot`s. Rule 1: a snapshot
is complete; what is half known is not published. Rule 2: a value that cannot be read never hides the good one that its
key had before, it is only reported. Rule 3: one address is one endpoint, however many records and layouts name it; the
layout given first wins, then the lower key. A change costs what changes, not the size of the set; only cutting a
snapshot walks the set once.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from grpc_etcd.registry.endpoint import Endpoint, Kind
from grpc_etcd.registry.frozen import FrozenDict
from grpc_etcd.registry.layout import Layout, Rejected

NONE_REJECTED: Mapping[bytes, str] = FrozenDict({})


def _none_rejected() -> Mapping[bytes, str]:
    return NONE_REJECTED


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The endpoints of a service, sorted by address, one per address; empty means no endpoints, not unknown.

    `rejected` maps the key of each record that could not be decoded to the reason.
    """

    service: str
    revision: int
    endpoints: tuple[Endpoint, ...] = ()
    rejected: Mapping[bytes, str] = field(default_factory=_none_rejected, hash=False)


class Difference(NamedTuple):
    """What leads from one snapshot to the next; `changed` holds the new form of endpoints whose address stayed."""

    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]
    changed: tuple[Endpoint, ...]


def diff(old: Snapshot, new: Snapshot) -> Difference:
    """Compare two snapshots of one service by address."""
    before = {endpoint.address: endpoint for endpoint in old.endpoints}
    after = {endpoint.address: endpoint for endpoint in new.endpoints}
    return Difference(
        added=tuple(endpoint for address, endpoint in after.items() if address not in before),
        removed=tuple(endpoint for address, endpoint in before.items() if address not in after),
        changed=tuple(e for address, e in after.items() if address in before and before[address] != e),
    )


class _Claim(NamedTuple):
    """One record's say about an address; the least claim wins."""

    rank: int
    key: bytes


class SnapshotBuilder:
    """Keep what the records of one service say, and cut snapshots of it. Not safe for concurrent use."""

    def __init__(self, service: str, layouts: Sequence[Layout], *, schemes: Iterable[str] | None = ("grpc",)) -> None:
        """Take providers of `schemes` (None: of all) as they stand in `layouts`, the preferred layout first."""
        self.service = service
        self._layouts = tuple((layout.prefix(service), rank, layout) for rank, layout in enumerate(layouts))
        self._schemes = None if schemes is None else frozenset(schemes)
        self._read: dict[bytes, tuple[int, Endpoint]] = {}
        self._claims: dict[str, list[_Claim]] = {}
        self._addresses: list[str] = []
        self._rejected: dict[bytes, str] = {}
        self._revision = 0

    def __repr__(self) -> str:
        return (
            f"<SnapshotBuilder {self.service!r} revision={self._revision} "
            f"endpoints={len(self._addresses)} rejected={len(self._rejected)}>"
        )

    @property
    def prefixes(self) -> tuple[bytes, ...]:
        """Return the key prefixes to list and watch, each once."""
        return tuple(dict.fromkeys(prefix for prefix, _, _ in self._layouts))

    @property
    def keys(self) -> set[bytes]:
        """Return the keys of all records that are held or rejected."""
        return self._read.keys() | self._rejected.keys()

    def endpoint(self, key: bytes) -> Endpoint | None:
        """Return the endpoint that a key's record stands for."""
        held = self._read.get(key)
        return held[1] if held else None

    def at(self, address: str) -> Endpoint | None:
        """Return the endpoint at an address, as the record that is believed about it says."""
        claims = self._claims.get(address)
        return self._read[claims[0].key][1] if claims else None

    def endpoints(self) -> Iterator[Endpoint]:
        """Return the endpoints as they are now, one per address, in the order of the addresses."""
        return (self._read[self._claims[address][0].key][1] for address in self._addresses)

    def read(self, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Read a record without taking it; None: it is not an endpoint that is wanted."""
        decoded = self._decode(key, value)
        return decoded if decoded is None or isinstance(decoded, Rejected) else decoded[1]

    def replace(self, records: Iterable[tuple[bytes, bytes]], revision: int) -> bool:
        """Take a complete listing in place of all known.

        Report whether the endpoints or the rejected records changed.
        """
        records = list(records)
        listed = {key for key, _ in records}
        gone = [(key, None) for key in (self._read.keys() | self._rejected.keys()) - listed]
        return self.apply([*gone, *records], revision)

    def apply(self, changes: Iterable[tuple[bytes, bytes | None]], revision: int) -> bool:
        """Take changes in order, a value of None being a deletion.

        Report as `replace` does whether anything changed.
        """
        self._revision = revision
        changed = False
        for key, value in changes:
            changed |= self._forget(key) if value is None else self._take(key, value)
        return changed

    def snapshot(self) -> Snapshot:
        """Cut the present state; equal states give equal snapshots."""
        endpoints = tuple([self._read[self._claims[address][0].key][1] for address in self._addresses])
        rejected = FrozenDict(dict(sorted(self._rejected.items()))) if self._rejected else NONE_REJECTED
        return Snapshot(self.service, self._revision, endpoints, rejected)

    def _take(self, key: bytes, value: bytes) -> bool:
        match self._decode(key, value):
            case Rejected(reason):
                changed = self._rejected.get(key) != reason
                self._rejected[key] = reason
                return changed
            case None:
                return self._forget(key)
            case rank, endpoint:
                return self._accept(key, rank, endpoint)

    def _decode(self, key: bytes, value: bytes) -> tuple[int, Endpoint] | Rejected | None:
        rejected: Rejected | None = None
        for prefix, rank, layout in self._layouts:
            if key.startswith(prefix):
                decoded = self._decode_as(layout, key, value)
                if isinstance(decoded, Endpoint):
                    return (rank, decoded) if self._is_wanted(decoded) else None
                rejected = rejected or decoded
        return rejected

    def _decode_as(self, layout: Layout, key: bytes, value: bytes) -> Endpoint | Rejected | None:
        """Decode a record; whatever goes wrong concerns that record alone."""
        try:
            return layout.decode(self.service, key, value)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
            return Rejected(f"the record cannot be read: {type(error).__name__}: {error}")

    def _is_wanted(self, endpoint: Endpoint) -> bool:
        return endpoint.kind is Kind.PROVIDER and (self._schemes is None or endpoint.scheme in self._schemes)

    def _accept(self, key: bytes, rank: int, endpoint: Endpoint) -> bool:
        changed = self._rejected.pop(key, None) is not None
        known = self._read.get(key)
        if known == (rank, endpoint):
            return changed
        if known is not None and (known[0], known[1].address) != (rank, endpoint.address):
            self._drop(key)
            known = None
        self._read[key] = (rank, endpoint)
        if known is None:
            self._claim(endpoint.address, _Claim(rank, key))
        return True

    def _forget(self, key: bytes) -> bool:
        changed = self._rejected.pop(key, None) is not None
        if key not in self._read:
            return changed
        self._drop(key)
        return True

    def _claim(self, address: str, claim: _Claim) -> None:
        if address in self._claims:
            insort(self._claims[address], claim)
        else:
            self._claims[address] = [claim]
            insort(self._addresses, address)

    def _drop(self, key: bytes) -> None:
        rank, endpoint = self._read.pop(key)
        claims = self._claims[endpoint.address]
        claims.remove(_Claim(rank, key))
        if not claims:
            del self._claims[endpoint.address]
            del self._addresses[bisect_left(self._addresses, endpoint.address)]
