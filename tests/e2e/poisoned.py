"""The operator, with exceptions that nobody foresaw: `python poisoned.py FILE run ...`.

FILE has one edge a line. What is of one object fails for those whose name
begins with `poison`, as long as the edge is in the file; what is of all objects fails twice, each time that the file is
written. This runs in a process of its own, so that nothing of it reaches the tests.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpc_etcd_operator.cli import main
from grpc_etcd_operator.controller import applier, event_handlers, reconciler, resync, status_writer
from grpc_etcd_operator.controller.outcomes import Outcome
from grpc_etcd_operator.core.cluster import World
from grpc_etcd_operator.kube import pages
from grpc_etcd_operator.registry.cache import Mirror
from grpc_etcd_operator.registry.election import Election
from grpc_etcd_operator.registry.leases import Leases

POISON = Path(sys.argv.pop(1))
TWICE = 2
thrown: Counter[tuple[str, int]] = Counter()


class PoisonError(Exception):
    """Nobody foresees it."""


def fail(edge: str, name: str | None) -> None:
    """Raise where the file says so; a name of None stands for all objects."""
    if edge not in POISON.read_text().splitlines():
        return
    if name is None:
        key = edge, POISON.stat().st_mtime_ns
        thrown[key] += 1
        if thrown[key] > TWICE:
            return
    elif not name.startswith("poison"):
        return
    raise PoisonError(edge)


def spoil(owner: Any, function: str, edge: str, name: Callable[..., str | None]) -> None:
    """Let a function fail where the file says so."""
    original = getattr(owner, function)

    def spoiled(*arguments: Any, **more: Any) -> Any:
        fail(edge, name(*arguments))
        return original(*arguments, **more)

    setattr(owner, function, spoiled)


def everything(*_: object) -> None:
    """Give the name of what is of all objects."""


def outcome_of(reconciler: event_handlers.Reconciler, _registry: str, outcome: Outcome) -> str:
    pod = reconciler.world.pods.get(outcome.uid)
    return pod.name if pod else ""


def service_of(world: World, uid: str, *_: object) -> str:
    return world.services[uid].name if uid in world.services else ""


spoil(event_handlers, "parse_pod", "decoder of Pods", lambda message, *_: str(message.metadata.name))
spoil(event_handlers, "parse_service", "decoder of GrpcServices", lambda raw, *_: str(raw["metadata"]["name"]))
spoil(reconciler, "make_plan", "planner", lambda desired, *_: desired.unit.pod)
spoil(applier, "make_transaction", "writer", lambda plans, *_: everything(plans))
spoil(event_handlers.Reconciler, "take_outcome", "outcome", outcome_of)
spoil(status_writer, "make_status", "status writer", lambda service, *_: service.name)
spoil(status_writer.Reporter, "_bring_gate", "gate", lambda _, pod: pod.name)
spoil(World, "begin_grant", "claims", service_of)
spoil(resync, "find_vanished", "sweep", everything)
spoil(Leases, "ensure", "lease", everything)
spoil(Mirror, "apply", "watch of etcd", everything)
spoil(pages, "read_event", "watch of Pods", everything)
spoil(Election, "_step", "election", everything)

if __name__ == "__main__":
    main(prog_name="grpc-etcd-operator")
