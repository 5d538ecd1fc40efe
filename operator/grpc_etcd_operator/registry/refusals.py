"""Finds out what of a refused transaction etcd refuses, and whether it still does.

etcd checks permissions and sizes of all operations before the conditions. So a transaction whose condition never
holds shows what is refused, and changes nothing.

Nor does it take any put under a lease as long as that has a key which the role may not write. Then a unit cannot even
have its owner record changed: it is that key's prefix which is noted as refused, and its units but delete what they
can. So it is for all units where the operator's own records are refused, which is the fault of no GrpcService.
"""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import replace

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import EtcdError, InvalidRequest, PermissionDenied
from grpc_etcd.registry.escaping import quote_argument
from grpc_etcd.registry.own import ROOT
from grpc_etcd_operator.core.desired import Desired, Fault
from grpc_etcd_operator.core.plan import Plan
from grpc_etcd_operator.core.reasons import DENIED, Reason
from grpc_etcd_operator.core.refusals import Refusal, Refusals, spare
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.prefixes import Streams

log = logging.getLogger(__name__)
REFUSED = (PermissionDenied, InvalidRequest)
PROBE = b"grpc-etcd"
BOUND = "etcd accepts no more keys under a lease with keys that the operator is not allowed to write"


def grant(prefix: bytes) -> str:
    """Write the command that grants the operator's etcd role access to a prefix."""
    argument = quote_argument(prefix.decode(errors="replace"))
    return f"etcdctl role grant-permission ROLE --prefix=true readwrite {argument}"


class Refusing:
    """What etcd refuses in one registry."""

    def __init__(self, etcd: Etcd, election: Election, streams: Streams, owners: bytes) -> None:
        self._etcd, self._election, self._streams, self._owners = etcd, election, streams, owners
        self.refusals = Refusals()

    @property
    def own(self) -> PermissionDenied | None:
        """Return how etcd refuses the operator's own records, without which nothing is put; None: it takes them."""
        return PermissionDenied(f"{self._report_own()}.") if self._owners in self.refusals else None

    @property
    def count(self) -> int:
        """Count the prefixes and keys of GrpcServices that are refused."""
        return sum(key != self._owners for key in self.refusals)

    def find(self, key: bytes) -> Refusal | None:
        """Return why a key is refused, by itself or with its prefix."""
        return self.refusals.find(key, self._streams.find(key))

    def spare(self, desired: Desired, held: tuple[bytes, ...]) -> Desired:
        """Leave out what is refused; a GrpcService learns of its prefixes even if it selects no Pod."""
        spared = spare(desired, held, self.find)
        uid = desired.unit.uid
        found = [refusal for each in self._streams.used_by(uid) if (refusal := self.refusals.find(each))]
        for refusal in found:
            refusal.units.add(uid)
        faults = [Fault(uid, refusal.reason, refusal.message) for refusal in found]
        return replace(spared, faults=tuple(dict.fromkeys((*spared.faults, *faults))))

    def users(self, keys: Iterable[bytes]) -> set[str]:
        """Return the GrpcServices (by UID) that write under those prefixes of some keys that are refused."""
        prefixes = {self._streams.find(key) for key in keys}
        return {uid for prefix in prefixes if prefix and prefix in self.refusals for uid in self._streams.users(prefix)}

    def note_unreadable(self, prefix: bytes, error: EtcdError) -> None:
        """Record that a prefix cannot be followed; who follows it asks again."""
        self._note(prefix, error, math.inf)

    def note_unread(self, key: bytes, error: EtcdError) -> None:
        """Record that a key cannot be read by itself; nobody follows it, so retrying."""
        self._note(key, error, time.monotonic())

    def leave_out_puts(self, desired: Desired, plan: Plan, held: Iterable[bytes]) -> Plan:
        """Let a unit put nothing where its owner record is refused; that names more than there is then, no harm.

        `held` are the keys that its lease may have. GrpcServices of which something is refused do not count as written.
        """
        left = self._leave_out_puts(desired, plan, held)
        refused = {fault.source for fault in left.faults if fault.reason in DENIED}
        return replace(left, written=left.written - refused)

    def _leave_out_puts(self, desired: Desired, plan: Plan, held: Iterable[bytes]) -> Plan:
        own = self.refusals.find(self._owners)
        deletes = tuple(edit for edit in plan.deletes if not (own and edit.key.startswith(self._owners)))
        refusal = own or self._find_binding(plan.uid, held)
        if refusal is None or not (plan.puts or len(deletes) < len(plan.deletes)):
            return plan
        refusal.units.add(plan.uid)
        late = {put.key for put in plan.puts}
        sources = dict.fromkeys(wanted.source for wanted in desired.wanted if wanted.key in late)
        message = f"{BOUND}: {refusal.message}" if refusal.binds_leases else refusal.message
        faults = [Fault(source, refusal.reason, message) for source in sources]
        is_whole, faults_of_all = len(deletes) == len(plan.deletes), (*plan.faults, *faults)
        rest = replace(plan, puts=(), deletes=deletes, requires=(), releases=(), faults=faults_of_all)
        return replace(rest, gone=plan.gone and is_whole, is_over=plan.is_over and is_whole)

    def _find_binding(self, uid: str, held: Iterable[bytes]) -> Refusal | None:
        """Return why etcd takes no put under a unit's lease."""
        found = (self.find(key) for key in held)
        binding = next((each for each in found if each and each.binds_leases), None)
        return binding or self.refusals.find(self._owners + uid.encode())

    async def are_own_refused(self) -> bool:
        """Find out whether etcd refuses the operator's own records; an error says that it refuses everything.

        So it does where the key may not be read that the fence compares.
        """
        refusal = await self._try(ops.put(self._owners + PROBE, b""))
        if not isinstance(refusal, PermissionDenied):
            return False
        if await self._try() is not None:
            raise PermissionDenied(f"etcd lets the operator neither read nor write its own records: {grant(ROOT)}.")
        self._note_own()
        return True

    async def find_culprits(self, plan: Plan, error: EtcdError, held: Iterable[bytes]) -> None:
        """Find out which keys of a plan etcd refuses; `held` are those that its lease may have."""
        found = False
        for key, operation in self._operations(plan):
            refusal = await self._try(operation)
            if refusal is None:
                continue
            if isinstance(refusal, PermissionDenied) and await self._is_for_the_lease(key, plan):
                await self._note_lease(plan, held)
                return
            if key.startswith(self._owners):
                if isinstance(refusal, PermissionDenied):
                    self._note_own()
                    return
                continue  # it names too many keys: none more can be written, and what exists is not to go
            found = True
            self._note(key, refusal, time.monotonic())
        if not found:  # each by itself is taken, but not all together
            for key, _ in self._operations(plan):
                if not key.startswith(self._owners):
                    self._note_key(key, error, time.monotonic())

    async def ask_again(self) -> set[str]:
        """Try what is due; return the units that may go on."""
        units: set[str] = set()
        for key in self.refusals.due(time.monotonic()):
            if not key.endswith(b"/"):
                units |= self.refusals.end(key, is_trial=True)
            elif (refusal := await self._try(ops.put(key + PROBE, b""))) is None:
                units |= self.refusals.end(key)
            elif key == self._owners:
                self._note_own()
            elif key in self.refusals:  # else its GrpcService has gone meanwhile, and nobody would ever take it back
                self._note(key, refusal, time.monotonic())
        return units

    async def _is_for_the_lease(self, key: bytes, plan: Plan) -> bool:
        """Return whether etcd takes a put, but not under the lease that it is for."""
        values = [put.value for put in plan.puts if put.key == key]
        return bool(values) and await self._try(ops.put(key, values[0])) is None

    async def _note_lease(self, plan: Plan, held: Iterable[bytes]) -> None:
        """Record that nothing can be put under a unit's lease, and find the prefixes for which that is so.

        Other units with keys there need not find it out each for itself. Where none is found retrying.
        """
        reported = set[bytes]()
        for key in held:
            prefix = self._streams.find(key) or key[: key.rfind(b"/") + 1] or key
            if prefix not in reported and (refusal := await self._try(ops.delete(key))):
                reported.add(prefix)
                self._note(key, refusal, time.monotonic()).binds_leases = True
        if not reported:
            message = f"{BOUND}: etcdctl lease timetolive {plan.lease:x} --keys lists them"
            noted = self._report(self._owners + plan.uid.encode(), Reason.PERMISSION_DENIED, message, time.monotonic())
            noted.units.add(plan.uid)

    def _operations(self, plan: Plan) -> list[tuple[bytes, ops.Op]]:
        puts: list[tuple[bytes, ops.Op]] = [
            (put.key, ops.put(put.key, put.value, lease=plan.lease)) for put in plan.puts
        ]
        return puts + [(edit.key, ops.delete(edit.key)) for edit in plan.deletes]

    async def _try(self, *operations: ops.Op) -> EtcdError | None:
        try:
            await self._etcd.transaction([self._election.never()], operations)
        except REFUSED as error:
            return error
        return None

    def _note_own(self) -> None:
        self._report(self._owners, Reason.PERMISSION_DENIED, f"{self._report_own()}: {grant(ROOT)}", time.monotonic())

    def _report_own(self) -> str:
        owners = self._owners.decode(errors="replace")
        return f"etcd does not let the operator write its own records under {owners}, so it only deregisters"

    def _note(self, key: bytes, error: EtcdError, now: float) -> Refusal:
        if not isinstance(error, PermissionDenied):
            return self._note_key(key, error, now)
        prefix = key if key.endswith(b"/") else self._streams.find(key)
        reported = prefix or key[: key.rfind(b"/") + 1] or key
        message = (
            f"etcd does not let the operator read and write under {reported.decode(errors='replace')}: "
            f"{grant(reported)}"
        )
        return self._report(prefix or key, Reason.PERMISSION_DENIED, message, now)

    def _note_key(self, key: bytes, error: EtcdError, now: float) -> Refusal:
        text = f"etcd refuses the record {key.decode(errors='replace')}: {error}. {error.remedy}"
        return self._report(key, Reason.UNWRITABLE, text, now)

    def _report(self, key: bytes, reason: Reason, message: str, now: float) -> Refusal:
        if key not in self.refusals:
            others = "no key is written" if key == self._owners else "all others continue"
            log.warning(
                "etcd denies a key or prefix; %s",
                others,
                extra={"event": "key_refused", "fields": {"refused": message}},
            )
        return self.refusals.note(key, reason, message, now)
