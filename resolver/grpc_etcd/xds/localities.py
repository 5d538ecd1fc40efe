"""Which endpoints a client takes, and how they are grouped so that gRPC balances them as wished. Pure.

gRPC's round robin ignores the weight of an endpoint, but not that of a locality. So:
  all weights equal         one locality per zone, weighing as much as it has endpoints
  weights differ, <= 100    a locality per endpoint: exact, and a change of weight keeps the connection
  weights differ, more      a locality per zone and class of weight: a change of class reconnects, but the cost of an
                            update stays linear (with a locality each it is quadratic: 2 s at 1,000)
  ring hash                 one locality per zone, since the ring reads the endpoint's own weight
Zones are priorities: gRPC goes to the next one when no endpoint of the one before can be reached. One unfit endpoint
would make gRPC refuse the whole set, so nothing leaves here but distinct sockets with a positive weight.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Balancing, LoadBalancing, Policy, ZonePreference
from grpc_etcd.xds.resources import Locality, Socket, Target

LARGEST_SET = 1000  # endpoints taken when the policy names no subset: an update costs gRPC 0.1 s of CPU there
_LOCALITY_EACH = 100
_CLASSES = 16
_HEAVIEST = 10_000  # the largest weight a GrpcService can give; sums stay far below gRPC's limit of 2**32


class Dialable(NamedTuple):
    """An endpoint and the sockets that its host name stands for."""

    endpoint: Endpoint
    sockets: tuple[Socket, ...]


@dataclass(frozen=True, slots=True)
class Here:
    """Where this client is, and the id by which it chooses its subset of a large set."""

    zone: str = ""
    region: str = ""
    client_id: str = ""


def is_callable(endpoint: Endpoint) -> bool:
    """Tell whether new calls may go to it; an endpoint that is disabled or has no weight is drained."""
    return endpoint.enable and endpoint.healthy and endpoint.weight > 0


def choose_localities(
    dialables: Iterable[Dialable], policy: Policy, here: Here, generation: int = 0
) -> tuple[Locality, ...]:
    """Choose what one cluster holds. Another `generation` makes gRPC take the same endpoints for a new set."""
    tiers = _tiers(_distinct(dialables), policy, here)
    chosen = _subset(tiers, policy.subset or LARGEST_SET, here.client_id)
    grouping = _grouping([dialable.endpoint for tier in chosen for dialable in tier], policy.load_balancing)
    return tuple(
        locality
        for priority, tier in enumerate(chosen)
        for locality in _localities(tier, grouping, priority, f"-{generation}" if generation else "")
    )


def _distinct(dialables: Iterable[Dialable]) -> list[Dialable]:
    """Drop what must not be called, and every socket that another endpoint has already."""
    taken: set[Socket] = set()
    distinct = []
    for endpoint, sockets in dialables:
        free = tuple(socket for socket in dict.fromkeys(sockets) if socket not in taken)
        if free and is_callable(endpoint):
            taken.update(free)
            distinct.append(Dialable(endpoint, free))
    return distinct


def _tiers(dialables: list[Dialable], policy: Policy, here: Here) -> list[list[Dialable]]:
    """Split by distance: own zone, own region, the rest; without a preference all are one tier."""
    wish = policy.locality_preference
    if not here.zone or wish is None or wish.mode is ZonePreference.NONE:
        return [dialables] if dialables else []
    tiers: list[list[Dialable]] = [[], [], []]
    for dialable in dialables:
        tiers[_distance(dialable.endpoint, here)].append(dialable)
    return [tier for tier in tiers if tier]  # priorities with a gap make gRPC refuse the set


def _distance(endpoint: Endpoint, here: Here) -> int:
    same_region = not here.region or not endpoint.region or endpoint.region == here.region
    if same_region and endpoint.zone == here.zone:
        return 0
    return 1 if here.region and endpoint.region == here.region else 2


def _subset(tiers: list[list[Dialable]], most: int, client_id: str) -> list[list[Dialable]]:
    """Keep `most` endpoints, near ones first, but leave a quarter of them to spill over to where there are others.

    Rendezvous hashing: which ones a client takes depends on its id and the address alone, so that a change of the set
    changes at most one of them.
    """
    chosen: list[list[Dialable]] = []
    room = most
    for position, tier in enumerate(tiers):
        reserve = most // 4 if position + 1 < len(tiers) else 0
        chosen.append(_nearest_in_hash(tier, room - reserve, client_id))
        room -= len(chosen[-1])
    return [tier for tier in chosen if tier]


def _nearest_in_hash(tier: list[Dialable], most: int, client_id: str) -> list[Dialable]:
    if len(tier) <= most:
        return tier
    ranked = sorted(tier, key=lambda dialable: _rank(client_id, dialable.endpoint.address))
    return sorted(ranked[:most], key=lambda dialable: dialable.endpoint.address)


def _rank(client_id: str, address: str) -> bytes:
    return blake2b(f"{client_id}\0{address}".encode(), digest_size=8).digest()


class _Grouping(NamedTuple):
    """How endpoints become localities: by zone alone, each by itself, or by zone and class of weight."""

    ring: bool = False
    each: bool = False
    scale: float = 0  # 0: every endpoint counts as one
    classes_per_octave: int = 0  # 0: no classes

    def weight(self, endpoint: Endpoint) -> int:
        if not self.scale:
            return 1
        weight = max(1, round(min(endpoint.weight * self.scale, _HEAVIEST)))
        if not self.classes_per_octave:
            return weight
        octave = round(math.log2(weight) * self.classes_per_octave) / self.classes_per_octave
        return max(1, round(2**octave))


def _grouping(endpoints: Sequence[Endpoint], wish: LoadBalancing | None) -> _Grouping:
    balancing = (wish or LoadBalancing()).type
    weights = {endpoint.weight for endpoint in endpoints}
    ring = balancing is Balancing.RING_HASH
    if len(weights) <= 1 or balancing is Balancing.ROUND_ROBIN:
        return _Grouping(ring=ring)
    whole = max(weights) <= _HEAVIEST and all(float(weight).is_integer() for weight in weights)
    exact = _Grouping(ring=ring, scale=1 if whole else _HEAVIEST / min(max(weights), 1e300))
    if ring:
        return exact
    if len(endpoints) <= _LOCALITY_EACH:
        return exact._replace(each=True)
    scaled = {exact.weight(endpoint) for endpoint in endpoints}
    if len(scaled) <= _CLASSES:
        return exact
    octaves = max(1.0, math.log2(max(scaled) / min(scaled)))
    return exact._replace(classes_per_octave=max(1, int((_CLASSES - 1) / octaves)))


def _localities(tier: list[Dialable], grouping: _Grouping, priority: int, suffix: str) -> Iterable[Locality]:
    groups: dict[tuple[str, str, str], list[Target]] = defaultdict(list)
    totals: dict[tuple[str, str, str], int] = defaultdict(int)
    for endpoint, sockets in tier:
        weight = grouping.weight(endpoint)
        place = (endpoint.region, endpoint.zone, _sub_zone(endpoint, weight, grouping) + suffix)
        groups[place].append(Target(sockets, weight if grouping.ring else 1))
        totals[place] += weight
    for place, targets in groups.items():
        yield Locality(*place, 1 if grouping.ring else totals[place], priority, tuple(targets))


def _sub_zone(endpoint: Endpoint, weight: int, grouping: _Grouping) -> str:
    """Name a group, for other groupings by other names.

    A locality that has failed stays failed for gRPC until one of its endpoints is ready, even one that has just come.
    """
    if grouping.each:
        return endpoint.address
    if grouping.classes_per_octave:
        return f"weight-{weight}-of-{grouping.classes_per_octave}"
    return f"weight-{weight}" if grouping.scale and not grouping.ring else ""
