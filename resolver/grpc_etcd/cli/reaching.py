"""Reach etcd through kubectl where no endpoints are set: find it, forward a port to it, log in as what is found says.

First `kubectl port-forward` to a member that is a Service or a Pod, then `kubectl exec` into the operator's Pod, which
reaches etcd wherever that is. TLS goes through to etcd itself, whose certificate is expected to name what the operator
dials.
"""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from http import HTTPStatus
from types import FrameType
from typing import Any, NamedTuple

from grpc_etcd.cli.etcd_search import GIVE_ENDPOINTS, FoundEtcd, UnreachedError, Wanted, find_etcd
from grpc_etcd.cli.printing import print_line
from grpc_etcd.cli.tunnels import LOOPBACK, Children, ExecRelay, PortForward, Tunnel, TunnelError
from grpc_etcd.etcd.endpoints import is_target, parse_endpoint, wants_tls
from grpc_etcd.inspect.etcd_settings import explain_denial, find_places, is_forwardable
from grpc_etcd.inspect.kubernetes import Kubernetes, KubernetesError
from grpc_etcd.settings import ClientSettings

KUBECTL = "kubectl"
NOT_INSIDE = "it is no Service and no Pod of the cluster"
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
MOST_SIGNALS = 3  # the first ends the command, the second its children; by the third, nobody waits any more
NO_SETTINGS = frozenset({"endpoints", "timeout", "layouts", "static", "pod_ip"})  # those that say nothing of logging in


class Search(NamedTuple):
    """Where etcd is looked for, by the options of the command."""

    context: str | None = None
    namespace: str | None = None
    operator_namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """How etcd is reached: `endpoint` is what the cluster calls it."""

    endpoint: str
    how: str
    tunnel: Tunnel

    def describe(self) -> str:
        """Return what is between the command and etcd, and what that complains about."""
        complaint = self.tunnel.complaint()
        return f"etcd ({self.endpoint}) is reached by {self.how}" + (f": {complaint}" if complaint else "")


@contextmanager
def reaching(
    kubernetes: Kubernetes, search: Search, registry: str, given: ClientSettings
) -> Iterator[tuple[ClientSettings, Reach]]:
    """Open a way to etcd; return it with the settings that log in, those given before those found.

    Raises UnreachedError. The way ends with the block.
    """
    program = shutil.which(KUBECTL)
    if program is None:
        raise UnreachedError("kubectl is not in the PATH", f"Install kubectl. {GIVE_ENDPOINTS}", is_visible=False)
    names = frozenset(each.name for each in fields(given) if each.name not in NO_SETTINGS and getattr(given, each.name))
    namespace = search.namespace or kubernetes.access.namespace
    found = find_etcd(kubernetes, Wanted(namespace, search.operator_namespace, registry, names))
    context = ("--context", search.context) if search.context else ()
    children = Children()
    with ended_by_signals(children.kill):
        reach = TunnelOpener(kubernetes, found, (program, *context), children).open()
        print_line(f"{reach.describe()} ({found.source.subject})", error=True)
        try:
            yield _make_settings(given, found, reach), reach
        finally:
            reach.tunnel.close()


@contextmanager
def ended_by_signals(hurry: Callable[[], None]) -> Iterator[None]:
    """Let a signal end the block as an exception does, so that child processes are ended, and then the command.

    What this process was started to ignore, as by nohup, stays ignored. Those that come while the block ends do not
    keep it from ending what it has started: the second one only calls `hurry`, with the main thread anywhere. The third
    ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        caught.append(number)
        if len(caught) == 1:
            raise SystemExit(128 + number)
        hurry()
        if len(caught) >= MOST_SIGNALS:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    obeyed = [each for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in obeyed}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _make_settings(given: ClientSettings, found: FoundEtcd, reach: Reach) -> ClientSettings:
    """Return all settings: the certificate is that of the member's name, though it is dialed on loopback."""
    fitting: dict[str, Any] = {name: text for name, text in found.settings.items() if not getattr(given, name)}
    settings = replace(given, **fitting)
    is_https = wants_tls((reach.endpoint,))
    host = parse_endpoint(reach.endpoint).host.rstrip(".")
    uses_tls = is_https or settings.ca or settings.cert or settings.server_name
    return replace(
        settings,
        endpoints=f"{'https://' if is_https else ''}{LOOPBACK}:{reach.tunnel.port}",
        server_name=settings.server_name or (host if uses_tls else ""),
    )


class TunnelOpener:
    """Tries one way after the other to reach a member, and collects why they do not open."""

    def __init__(self, kubernetes: Kubernetes, found: FoundEtcd, kubectl: Sequence[str], children: Children) -> None:
        self._kubernetes, self._found, self._kubectl, self._children = kubernetes, found, kubectl, children
        self._failures: list[tuple[str, str]] = []

    def open(self) -> Reach:
        """Open the first way that there is; raises UnreachedError."""
        endpoints = [each for each in self._found.source.endpoints if not is_target(each)]
        for way in (self._forward, self._relay):
            for endpoint in endpoints:
                if reach := way(endpoint):
                    return reach
        reasons = "; ".join(dict.fromkeys(problem for problem, _ in self._failures)) or NOT_INSIDE
        remedy = next((remedy for _, remedy in self._failures if remedy), "")
        names = ", ".join(self._found.source.endpoints)
        raise UnreachedError(f"etcd ({names}) is not reached through kubectl: {reasons}", f"{remedy}{GIVE_ENDPOINTS}")

    def _forward(self, endpoint: str) -> Reach | None:
        """Forward a port to what a member is inside of the cluster; None where that is nothing, or may not be done."""
        member = parse_endpoint(endpoint)
        for place in find_places(member.host, self._found.source.namespace):
            try:
                if not is_forwardable(place, self._kubernetes.get(place.path)):
                    continue
                kubectl = (*self._kubectl, "-n", place.namespace)
                tunnel = PortForward(kubectl, place.reference, member.port, children=self._children)
            except KubernetesError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    self._note(f"{place.kind} {place.namespace}/{place.name}", error)
            except TunnelError as error:
                self._note(f"kubectl port-forward {place.reference}", error)
            else:
                return Reach(endpoint, f"kubectl -n {place.namespace} port-forward {place.reference}", tunnel)
        return None

    def _relay(self, endpoint: str) -> Reach | None:
        """Go through the operator's Pod; None where there is none, or that may not be done."""
        if self._found.deployment is None:
            return None
        namespace, deployment = self._found.deployment
        how = f"kubectl -n {namespace} exec deploy/{deployment}"
        try:
            kubectl = (*self._kubectl, "-n", namespace)
            tunnel = ExecRelay(kubectl, deployment, parse_endpoint(endpoint), children=self._children)
        except TunnelError as error:
            self._note(how, error)
            return None
        return Reach(endpoint, how, tunnel)

    def _note(self, what: str, error: Exception) -> None:
        """Note why a way does not open, and the commands that open it, where a right is missing."""
        denial = explain_denial(str(error))
        self._failures.append((denial[0], f"{denial[1]}. ") if denial else (f"{what}: {error}", ""))
