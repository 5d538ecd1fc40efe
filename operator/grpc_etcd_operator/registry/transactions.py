"""One transaction for the plans of several units: fenced, with every plan's conditions, and reads that say why not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.ops import Op
from grpc_etcd_operator.core.plan import Plan

REQUEST_BYTES = 1_000_000  # of etcd's 1.5 MiB (--max-request-bytes)


@dataclass(frozen=True, slots=True)
class Transaction:
    """What etcd is sent. `keys` are read when a condition does not hold, in this order, after the fence's key."""

    plans: tuple[Plan, ...]
    conditions: tuple[Compare, ...]
    operations: tuple[Op, ...]
    keys: tuple[bytes, ...]

    @property
    def leases(self) -> tuple[int, ...]:
        """List the leases that the puts need."""
        return tuple(plan.lease for plan in self.plans if plan.puts)

    @property
    def puts(self) -> dict[bytes, tuple[int, bytes]]:
        """Return what is put: lease and value by key."""
        return {put.key: (plan.lease, put.value) for plan in self.plans for put in plan.puts}

    @property
    def deleted(self) -> tuple[bytes, ...]:
        """List the keys that are deleted."""
        return tuple(edit.key for plan in self.plans for edit in plan.deletes)


def make_transaction(plans: Sequence[Plan], fence: Sequence[Compare]) -> Transaction:
    """Put plans into one transaction; no two of them may touch the same key."""
    conditions: list[Compare] = [*fence]
    operations: list[Op] = []
    keys: list[bytes] = []
    for plan in plans:
        for put in plan.puts:
            conditions.append(compare.mod_revision(put.key, "==", put.mod_revision))
            operations.append(ops.put(put.key, put.value, lease=plan.lease))
            keys.append(put.key)
        for delete in plan.deletes:
            conditions.append(
                compare.mod_revision(delete.key, "==", delete.mod_revision)
                if delete.mod_revision
                else compare.lease(delete.key, "==", delete.lease)
            )
            operations.append(ops.delete(delete.key))
            keys.append(delete.key)
        for required in plan.requires:
            conditions.append(compare.mod_revision(required.key, "==", required.mod_revision))
            keys.append(required.key)
        for release in plan.releases:
            conditions.append(compare.lease(release.key, "!=", release.lease))
            keys.append(release.key)
    return Transaction(tuple(plans), tuple(conditions), tuple(operations), tuple(keys))


def deregistration_of(plan: Plan, owners: bytes) -> Plan | None:
    """Return what of a plan an etcd without space takes: what it deletes, where it puts nothing but the owner record.

    That names more keys than there are then, which harms nobody. With other keys to be put all stays as it is: they may
    be those that come in place of what goes.
    """
    if not plan.deletes or not all(put.key.startswith(owners) for put in plan.puts):
        return None
    return replace(plan, puts=(), requires=(), releases=(), is_part=True) if plan.puts else plan


def divide(plans: Iterable[Plan]) -> tuple[list[list[Plan]], list[Plan]]:
    """Group plans into transactions that etcd takes by their size; those that touch a key of another come later."""
    groups: list[list[Plan]] = []
    later: list[Plan] = []
    seen: set[bytes] = set()
    used = REQUEST_BYTES
    for plan in plans:
        keys = set(plan.keys)
        if seen & keys:
            later.append(plan)
            continue
        seen |= keys
        size = sum(len(put.key) * 3 + len(put.value) + 64 for put in plan.puts) + 256 * len(plan.deletes)
        if used + size > REQUEST_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(plan)
        used += size
    return groups, later
