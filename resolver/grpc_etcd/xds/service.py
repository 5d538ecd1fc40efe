"""All that the channels of one service are told: its clusters, its routes, its policy. Pure.

A cluster is a selection of the service's endpoints: all of them, a group, or one address. Routes send the calls of a
method to groups or addresses by weight (a canary); a share without a callable endpoint is left out, and a route without
any share falls back to all endpoints, because a route must never be the reason for a failed call.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from grpc_etcd.registry.policy import Policy
from grpc_etcd.xds import resources
from grpc_etcd.xds.localities import Dialable, Here, choose_localities, is_callable
from grpc_etcd.xds.names import ResourceName, Selection
from grpc_etcd.xds.resources import ClusterShare, Locality, Route


@dataclass(frozen=True, slots=True)
class MethodRoute:
    """Where the calls of `method` go: groups and single addresses, by weight.

    `method` is `/package.Service/Method`, or ends in `/` or `*` and stands for all that begin so; empty is all methods.
    """

    method: str = ""
    groups: Mapping[str, int] = field(default_factory=dict, hash=False)
    addresses: Mapping[str, int] = field(default_factory=dict, hash=False)


class Part(NamedTuple):
    """A selection of a service's endpoints."""

    selection: Selection
    selected: str = ""

    def holds(self, dialable: Dialable) -> bool:
        """Tell whether an endpoint is of this part."""
        if self.selection is Selection.GROUP:
            return dialable.endpoint.group == self.selected
        return self.selection is Selection.ALL or dialable.endpoint.address == self.selected


ALL = Part(Selection.ALL)
_Shares = tuple[tuple[Part, int], ...]


@dataclass(frozen=True, slots=True)
class ServiceResources:
    """One service as xDS sees it. `clusters` of None: the endpoints are unknown, which is not the same as none."""

    policy: Policy = field(default_factory=Policy)
    routes: tuple[tuple[str, _Shares], ...] = ()
    clusters: Mapping[Part, tuple[Locality, ...]] | None = None

    @property
    def size(self) -> int:
        """Count the endpoints that are told."""
        chosen = self.clusters.get(ALL, ()) if self.clusters else ()
        return sum(len(locality.targets) for locality in chosen)

    def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        """Write the resource under the very name it was requested by; None means that it cannot be known yet."""
        match type_url:
            case resources.LISTENER:
                return resources.listener(requested, self._routes(name), self.policy)
            case resources.CLUSTER:
                weighted = any(locality.weight != len(locality.targets) for locality in self._localities(name))
                assignment = name.format(resources.ASSIGNMENT)
                return resources.cluster(requested, assignment, self.policy, weighted=weighted)
            case resources.ASSIGNMENT if self.clusters is not None:
                return resources.assignment(requested, self._localities(name))
        return None

    def _localities(self, name: ResourceName) -> tuple[Locality, ...]:
        return (self.clusters or {}).get(Part(name.selection, name.selected), ())

    def _routes(self, name: ResourceName) -> Iterator[Route]:
        for method, shares in (*self.routes, ("", ((ALL, 1),))):
            clusters = (ClusterShare(name.select(*part).format(resources.CLUSTER), weight) for part, weight in shares)
            yield Route(method.rstrip("*"), method == "" or method[-1] in "/*", tuple(clusters))


def make_service_resources(
    dialables: Sequence[Dialable], policy: Policy, routes: Iterable[MethodRoute], here: Here, generation: int = 0
) -> ServiceResources:
    """Decide everything for one service from its endpoints and wishes."""
    callables = [dialable for dialable in dialables if is_callable(dialable.endpoint)]
    shares = tuple((route.method, _shares(route, callables)) for route in routes)
    parts = [ALL, *dict.fromkeys(part for _, chosen in shares for part, _ in chosen)]
    clusters = {part: choose_localities(filter(part.holds, callables), policy, here, generation) for part in parts}
    return ServiceResources(policy, _exact_first(shares), MappingProxyType(clusters))


def _shares(route: MethodRoute, callables: Sequence[Dialable]) -> _Shares:
    wished = [(Part(Selection.GROUP, group), weight) for group, weight in route.groups.items()]
    wished += [(Part(Selection.ADDRESS, address), weight) for address, weight in route.addresses.items()]
    return tuple(
        (part, weight) for part, weight in wished if weight > 0 and any(part.holds(each) for each in callables)
    )


def _exact_first(shares: tuple[tuple[str, _Shares], ...]) -> tuple[tuple[str, _Shares], ...]:
    """Order routes so that the most special one matches first: whole names, then long prefixes before short ones."""
    usable = [(method, chosen) for method, chosen in shares if chosen]
    return tuple(sorted(usable, key=lambda route: (route[0][-1:] in ("", "/", "*"), -len(route[0]), route[0])))
