"""Which stream a key belongs to: the service's prefix in a layout, which is what one reader watches."""

from collections.abc import Callable, Container, Iterable, Sequence

from grpc_etcd.registry.layout import Layout, WriteLimits
from grpc_etcd.registry.own import OwnerRecord
from grpc_etcd_operator.core.desired import Desired

AT_EASE = WriteLimits()


class Streams:
    """The prefixes that our services write under. `has_listed` says whether the mirror has seen all of a prefix."""

    def __init__(self, has_listed: Callable[[Iterable[bytes]], bool]) -> None:
        self._has_listed = has_listed
        self._of: dict[bytes, list[tuple[Layout, str]]] = {}
        self._paces: dict[bytes, WriteLimits] = {}
        self._read: set[bytes] = set()  # singly, as an owner record names them
        self._read_nameless: set[bytes] = set()  # the same since their unit's names them no longer
        self._used_by: dict[str, frozenset[bytes]] = {}
        self._users: dict[bytes, set[str]] = {}

    def learn(self, layout: Layout, service: str) -> bytes:
        """Take a service in a layout; its prefix is returned.

        Another layout may come to the same prefix, at once or in place of the first: readers of either are spared.
        """
        prefix = layout.prefix(service)
        known = self._of.setdefault(prefix, [])
        if (layout, service) not in known:
            known.append((layout, service))
            self._paces[prefix] = _find_strictest([each.limits for each, _ in known])
        return prefix

    def learn_plain(self, prefix: bytes) -> bytes:
        """Take a prefix that no reader paces, but whose records we write and therefore follow."""
        self._of.setdefault(prefix, [])
        return prefix

    def assign(self, uid: str, prefixes: Iterable[bytes]) -> frozenset[bytes]:
        """Take which prefixes a GrpcService writes under from now on; return those that nobody uses any more."""
        old, new = self._used_by.pop(uid, frozenset()), frozenset(prefixes)
        if new:
            self._used_by[uid] = new
        for prefix in new - old:
            self._users.setdefault(prefix, set()).add(uid)
        for prefix in old - new:
            self._users[prefix].discard(uid)
        unused = frozenset(prefix for prefix in old - new if not self._users[prefix])
        for prefix in unused:
            del self._users[prefix]
        return unused

    def used_by(self, uid: str) -> frozenset[bytes]:
        """Return the prefixes that a GrpcService writes under."""
        return self._used_by.get(uid, frozenset())

    def all_used(self) -> Iterable[bytes]:
        """Return all prefixes that GrpcServices write under."""
        return self._users.keys()

    def users(self, prefix: bytes) -> frozenset[str]:
        """Return the GrpcServices that write under a prefix."""
        return frozenset(self._users.get(prefix, ()))

    def forget(self, prefix: bytes) -> None:
        """Record that a prefix is followed no longer."""
        self._of.pop(prefix, None)
        self._paces.pop(prefix, None)

    def forget_reads(self) -> None:
        """Record that nothing is known any more of what was read singly."""
        self._read.clear()
        self._read_nameless.clear()

    def find(self, key: bytes) -> bytes | None:
        """Return the prefix that `key` is under; None for keys that no reader paces."""
        end = key.rfind(b"/")
        while end > 0:
            prefix = key[: end + 1]
            if prefix in self._of:
                return prefix
            end = key.rfind(b"/", 0, end)
        return None

    def limits(self, prefix: bytes) -> WriteLimits:
        """Report the client limits of a stream."""
        return self._paces.get(prefix, AT_EASE)

    def flush(self, prefix: bytes, cluster: str) -> tuple[bytes, bytes] | None:
        """Return key and value of a stream's flush key."""
        flushes = (layout.settled(service, cluster) for layout, service in self._of.get(prefix, ()))
        return next(filter(None, flushes), None)

    def is_listed(self, desired: Desired, owner: OwnerRecord | None, refused: Container[bytes] = ()) -> bool:
        """Return whether the mirror has listed all prefixes that a unit wants or has, except for refused ones."""
        keys = [wanted.key for wanted in desired.wanted] + list(owner.keys if owner else ())
        return self._has_listed({prefix for key in keys if (prefix := self.find(key)) and prefix not in refused})

    def strangers(self, owner: OwnerRecord | None, nameless: Iterable[bytes] = ()) -> tuple[bytes, ...]:
        """List an owner's keys under prefixes that no GrpcService has any more; they must be read singly.

        Those that its owner record names no longer (`nameless`) have been deleted, most likely, by whoever leads: no
        watch reports another replica, which would wait forever for their deregistration. So they are read once more.
        """
        found = [key for key in nameless if key not in self._read_nameless]
        found += [key for key in owner.keys if key not in self._read] if owner else []
        return tuple(key for key in found if not self.find(key))

    def note_read(self, keys: Iterable[bytes], nameless: Iterable[bytes] = ()) -> None:
        """Record that these keys have been read singly; of `nameless` ones the owner's owner record does not report."""
        self._read.update(keys)
        self._read_nameless.update(nameless)

    def keep_reads(self, owners: Iterable[OwnerRecord]) -> None:
        """Forget what was read singly and is named by none of these any more: all owner records that there are."""
        self._read_nameless.clear()
        if self._read:
            self._read = {key for owner in owners for key in owner.keys if key in self._read}


def _find_strictest(paces: Sequence[WriteLimits]) -> WriteLimits:
    """Return a pace that all these clients tolerate."""
    rates = [each.keys_per_second for each in paces if each.keys_per_second is not None]
    most = min(each.keys_per_transaction for each in paces)
    return WriteLimits(most, min(rates, default=None), flush_key=any(each.flush_key for each in paces))
