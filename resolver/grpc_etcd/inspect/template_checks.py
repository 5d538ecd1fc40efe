"""What a Pod template asks for that makes Pods never ready, or cuts off their calls when they stop. Pure.

Readiness gates and pauses are nothing that the API server could refuse: any condition type is one, and any pause.
"""

from collections.abc import Iterable, Iterator

from grpc_etcd.inspect.cluster import GATE, PodFacts
from grpc_etcd.inspect.codes import Code
from grpc_etcd.inspect.findings import Finding
from grpc_etcd.inspect.nearness import is_misspelling

GROUP = GATE.partition("/")[0]


def wrong_gates(pod: PodFacts) -> list[str]:
    """Return the readiness gates that nobody opens: those of the operator's group, or nearly, that it does not know."""
    return [each for each in pod.gates if each != GATE and _is_meant(each)]


def _is_meant(gate: str) -> bool:
    group, _, name = gate.partition("/")
    return group == GROUP or is_misspelling(gate, GATE) or (is_misspelling(group, GROUP) and is_misspelling(name, GATE))


def is_gated(pod: PodFacts) -> bool:
    """Return whether Pods have the operator's gate, or were meant to."""
    return GATE in pod.gates or bool(wrong_gates(pod))


def check_gates(subject: str, pods: Iterable[PodFacts], show: str) -> Iterator[Finding]:
    """Report gates that stay closed forever; `show` is where they are to be changed."""
    wrong = {gate: pod for pod in pods for gate in wrong_gates(pod)}
    for gate, pod in wrong.items():
        problem = f"{pod.name} has the readiness gate {gate}, which nobody opens: such Pods never become ready"
        yield Finding(Code.WRONG_GATE, subject, problem, f"{show}: write {GATE} for {gate}")


def check_pauses(subject: str, pods: Iterable[PodFacts], show: str) -> Iterator[Finding]:
    """Report Pods whose preStop pause uses up the time in which they have to stop."""
    if pod := next((each for each in pods if 0 < each.grace_seconds <= each.pause_seconds), None):
        problem = (
            f"the preStop pause of {pod.name} ({pod.pause_seconds} s) takes all of terminationGracePeriodSeconds "
            f"({pod.grace_seconds} s): the server is killed two seconds after it is asked to stop, calls with it"
        )
        longer = "set terminationGracePeriodSeconds to the pause and the longest call together, or shorten the pause"
        yield Finding(Code.SHORT_GRACE, subject, problem, f"{show}: {longer}")
