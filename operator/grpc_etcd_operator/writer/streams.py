"""Which stream a key belongs to: the service's prefix in a layout, which is what one reader watches."""

from collections.abc import Callable, Iterable

from grpc_etcd.registry.layout import Layout, Pace
from grpc_etcd.registry.own import OwnerRecord
from grpc_etcd_operator.core.desired import Desired

AT_EASE = Pace()


class Streams:
    """The prefixes that our services write under. `has_listed` says whether the mirror has seen all of a prefix."""

    def __init__(self, has_listed: Callable[[Iterable[bytes]], bool]) -> None:
        self._has_listed = has_listed
        self._of: dict[bytes, tuple[Layout, str] | None] = {}
        self._read: set[bytes] = set()

    def learn(self, layout: Layout, service: str) -> bytes:
        """Take a service in a layout; its prefix is returned."""
        prefix = layout.prefix(service)
        self._of.setdefault(prefix, (layout, service))
        return prefix

    def learn_plain(self, prefix: bytes) -> bytes:
        """Take a prefix that no reader paces, but whose records we write and therefore follow."""
        self._of.setdefault(prefix, None)
        return prefix

    def find(self, key: bytes) -> bytes | None:
        """Give the prefix that `key` stands under; None for keys that no reader paces."""
        end = key.rfind(b"/")
        while end > 0:
            prefix = key[: end + 1]
            if prefix in self._of:
                return prefix
            end = key.rfind(b"/", 0, end)
        return None

    def pace(self, prefix: bytes) -> Pace:
        """Say what the readers of a stream bear."""
        known = self._of.get(prefix)
        return known[0].pace if known else AT_EASE

    def touch(self, prefix: bytes, cluster: str) -> tuple[bytes, bytes] | None:
        """Give key and value of a stream's settling touch."""
        known = self._of.get(prefix)
        return known[0].settled(known[1], cluster) if known else None

    def is_listed(self, desired: Desired, owner: OwnerRecord | None) -> bool:
        """Say whether the mirror has listed the prefixes of all that a unit wants or has."""
        keys = [wanted.key for wanted in desired.wanted] + list(owner.keys if owner else ())
        return self._has_listed({prefix for key in keys if (prefix := self.find(key))})

    def strangers(self, owner: OwnerRecord | None) -> tuple[bytes, ...]:
        """List an owner record's keys under prefixes that no GrpcService has any more; they must be read singly."""
        return tuple(key for key in owner.keys if key not in self._read and not self.find(key)) if owner else ()

    def note_read(self, keys: Iterable[bytes]) -> None:
        """Take it that these keys have been read singly."""
        self._read.update(keys)
