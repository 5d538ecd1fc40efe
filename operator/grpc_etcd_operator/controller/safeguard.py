"""Reports that most of what is registered would go at once: perhaps it was not meant to. Nothing goes unconfirmed."""

import logging
from collections.abc import Callable, Iterable, Sequence

from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.core.services import GrpcService

log = logging.getLogger(__name__)


class Safeguard:
    """Logs and counts such resyncs, and posts warnings on the GrpcServices that are concerned (`find` gives them)."""

    def __init__(
        self,
        find: Callable[[Iterable[str]], list[GrpcService]],
        warn: Callable[[Iterable[GrpcService], Reason, str], None],
    ) -> None:
        self._find, self._warn, self.count = find, warn, 0

    def note_missing(self, missing: Sequence[ObjectRef], total: int) -> None:
        """Report that most of what is known has gone."""
        self.count += 1
        message = (
            f"{len(missing)} of {total} objects are missing from a list; each is confirmed before its keys are deleted"
        )
        log.error(message, extra={"event": "deletion_safeguard", "fields": {"missing": len(missing), "of": total}})
        self._warn(self._find(seen.uid for seen in missing), Reason.MASS_DELETION, message)

    def note_left_out(self, held: Sequence[ObjectRef]) -> None:
        """Report, as long as it lasts, that keys stay of Pods that our selector does not find."""
        self.count += 1
        message = (
            f"{len(held)} registered Pods are not selected by the operator's podSelector; their keys stay until they "
            "are replaced: restore podSelector, or replace these Pods to deregister them"
        )
        self._warn(self._find(seen.uid for seen in held), Reason.MASS_DELETION, message)
