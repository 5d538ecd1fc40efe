"""Which endpoints a client takes, and how they are grouped so that gRPC balances them as wished. Pure.

gRPC's round robin ignores the weight of an endpoint, but not that of a locality. So:
  all weights equal         one locality per zone, weighing as much as it has endpoints
  weights differ, <= 100    a locality per endpoint: exact, and a change of weight keeps the connection
  weights differ, more      a locality per zone and class of weight: a change of class reconnects, but the cost of an
                            update stays linear (with a locality each it is quadratic: 2 s at 1,000)
  ring hash                 one locality per zone, since the ring reads the endpoint's own weight; of another name for
                            each set, so that gRPC makes a new ring. It connects an endpoint that a call has chosen by
                            its place in the set; if a smaller set has come meanwhile, that is beyond its end, and the
                            process dies (grpcio 1.66.0 and 1.85.3)
  slow start                endpoints that are new: a locality each, weighing less than the rest at first
Zones are priorities: gRPC goes to the next one when no endpoint of the one before can be reached. One unfit endpoint
would make gRPC refuse the whole set, so nothing leaves here but distinct sockets with a positive weight.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Balancing, LoadBalancing, LocalityPreference, Policy, ZonePreference
from grpc_etcd.xds.resources import Locality, Socket, Target

LARGEST_SET = 1000  # endpoints taken when the policy names no subset: an update costs gRPC 0.1 s of CPU there
_LOCALITY_EACH = 100
_CLASSES = 16
_HEAVIEST = 10_000  # the largest weight a GrpcService can give; sums stay far below gRPC's limit of 2**32
_WARM = 100  # what a warm endpoint weighs for each unit of weight while others are new: their share is in percent
_HEAVIEST_SUM = 2**31  # of a set, half of what gRPC takes: shares are rounded
_ALL_WARM: Mapping[str, float] = MappingProxyType({})
_LONGEST_TEXT = 120  # arbitrary: longer than any zone's name, and far from what gRPC takes in one message
CLUSTER = "cluster"  # the metadata by which endpoints say in which Kubernetes cluster they are


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
    cluster: str = ""


class Past(NamedTuple):
    """What the sets before have left behind.

    Another `generation` makes gRPC take the same endpoints for a new set. `warming` says of addresses that are new
    which share of their weight they have, above 0 and below 1.
    """

    generation: int = 0
    warming: Mapping[str, float] = _ALL_WARM


NO_PAST = Past()


def is_callable(endpoint: Endpoint) -> bool:
    """Return whether new calls may go to it; an endpoint that is disabled or has no weight is drained."""
    return endpoint.is_callable


def choose_localities(
    dialables: Iterable[Dialable],
    policy: Policy,
    here: Here,
    past: Past = NO_PAST,
) -> tuple[Locality, ...]:
    """Choose what one cluster holds."""
    generation, warming = past
    matching = _matching(_distinct(dialables), policy.match_metadata or {})
    tiers = _spill_over(_tiers(matching, policy, here), policy.locality_preference)
    chosen = _subset(tiers, policy.subset or LARGEST_SET, here.client_id)
    endpoints = [dialable.endpoint for tier in chosen for dialable in tier]
    grouping = _warmed(_grouping(endpoints, policy.load_balancing), endpoints, warming)
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


def _matching(dialables: list[Dialable], wanted: Mapping[str, str]) -> list[Dialable]:
    """Keep those whose metadata match, if there are any: a selection is never the reason for a failed call."""
    if not wanted:
        return dialables
    return [each for each in dialables if wanted.items() <= each.endpoint.metadata.items()] or dialables


def _tiers(dialables: list[Dialable], policy: Policy, here: Here) -> list[list[Dialable]]:
    """Split by distance: own cluster, own zone, own region, the rest; without a preference all are one tier."""
    wish = policy.locality_preference
    mode = wish.mode if wish else ZonePreference.NONE
    by_cluster = mode is ZonePreference.PREFER_CLUSTER and here.cluster
    if not by_cluster and (not (here.zone or here.region) or mode is ZonePreference.NONE):
        return [dialables] if dialables else []
    tiers: list[list[Dialable]] = [[] for _ in range(2 * (_FARTHEST + 1))]
    for dialable in dialables:
        is_foreign = by_cluster and dialable.endpoint.metadata.get(CLUSTER) != here.cluster
        tiers[_distance(dialable.endpoint, here) + (_FARTHEST + 1 if is_foreign else 0)].append(dialable)
    return [tier for tier in tiers if tier]  # priorities with a gap make gRPC refuse the set


def _spill_over(tiers: list[list[Dialable]], wish: LocalityPreference | None) -> list[list[Dialable]]:
    """Join the nearest with the next ones until they are as many as wished."""
    if not tiers or wish is None:
        return tiers
    total = sum(map(len, tiers))
    least = max(wish.min_endpoints, math.ceil(total * wish.min_percent / 100))
    first, *others = tiers
    while others and len(first) < least:
        first, *others = [*first, *others[0]], *others[1:]
    return [first, *others]


_FARTHEST = 2


def _distance(endpoint: Endpoint, here: Here) -> int:
    """Return 0 for the own zone, 1 for the own region, and `_FARTHEST` for the rest; 0 where neither is known."""
    if not (here.zone or here.region):
        return 0
    same_region = not here.region or not endpoint.region or endpoint.region == here.region
    if here.zone and same_region and endpoint.zone == here.zone:
        return 0
    return 1 if here.region and endpoint.region == here.region else _FARTHEST


def _subset(tiers: list[list[Dialable]], most: int, client_id: str) -> list[list[Dialable]]:
    """Keep `most` endpoints, near ones first, but leave a quarter of what is left to those farther away, if need be.

    Rendezvous hashing: which ones a client takes depends on its id and the address alone, so that a change of the set
    changes at most one of them.
    """
    chosen: list[list[Dialable]] = []
    room = most
    for position, tier in enumerate(tiers):
        farther = sum(map(len, tiers[position + 1 :]))
        chosen.append(_nearest_in_hash(tier, room - min(room // 4, farther), client_id))
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
    warming: Mapping[str, float] = _ALL_WARM
    warm: int = _WARM

    def share(self, endpoint: Endpoint) -> int:
        """Return its weight, reduced while it is new."""
        weight = self.weight(endpoint)
        if not self.warming:
            return weight
        return max(1, round(weight * self.warm * self.warming.get(endpoint.address, 1.0)))

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


def _warmed(grouping: _Grouping, endpoints: Iterable[Endpoint], warming: Mapping[str, float]) -> _Grouping:
    """Let new endpoints weigh less; in a large set of large weights the others weigh no more than gRPC takes."""
    if not warming:
        return grouping
    total = sum(map(grouping.weight, endpoints))
    return grouping._replace(warming=warming, warm=max(1, min(_WARM, _HEAVIEST_SUM // max(1, total))))


def _localities(tier: list[Dialable], grouping: _Grouping, priority: int, suffix: str) -> Iterable[Locality]:
    groups: dict[tuple[str, str, str], list[Target]] = defaultdict(list)
    totals: dict[tuple[str, str, str], int] = defaultdict(int)
    for endpoint, sockets in tier:
        weight = grouping.share(endpoint)
        place = (_text(endpoint.region), _text(endpoint.zone), _sub_zone(endpoint, grouping) + suffix)
        groups[place].append(Target(sockets, weight if grouping.ring else 1))
        totals[place] += weight
    ring = f"ring-{_fingerprint(groups)}" if grouping.ring else ""  # one of all zones: a name that stays keeps the ring
    for (region, zone, sub_zone), targets in groups.items():
        name = sub_zone + ring
        weight = 1 if grouping.ring else totals[region, zone, sub_zone]
        yield Locality(region, zone, name, weight, priority, tuple(targets))


def _fingerprint(groups: Mapping[tuple[str, str, str], Iterable[Target]]) -> str:
    """Name a set by what is in it."""
    found = sorted(repr((place, target)) for place, targets in groups.items() for target in targets)
    return blake2b("\n".join(found).encode(), digest_size=8).hexdigest()


def _sub_zone(endpoint: Endpoint, grouping: _Grouping) -> str:
    """Name a group, for other groupings by other names.

    A locality that has failed stays failed for gRPC until one of its endpoints is ready, even one that has just come.
    """
    warmth = None if grouping.ring else grouping.warming.get(endpoint.address)
    if grouping.each or (warmth and len(grouping.warming) <= _LOCALITY_EACH):
        return endpoint.address
    weight = grouping.weight(endpoint)
    if warmth:
        return f"weight-{weight}-warming-{warmth:.2f}"
    if grouping.classes_per_octave:
        return f"weight-{weight}-of-{grouping.classes_per_octave}"
    return f"weight-{weight}" if grouping.scale and not grouping.ring else ""


def _text(text: str) -> str:
    """Write what is not Unicode (a lone half of a pair, which JSON can hold) visibly: protobuf takes none.

    What is too long is named by its beginning and its hash, since it only distinguishes localities: gRPC drops a
    message of more than 4 MB, and with it the news of all services that share the stream.
    """
    written = text.encode(errors="backslashreplace").decode()
    if len(written) <= _LONGEST_TEXT:
        return written
    return f"{written[: _LONGEST_TEXT // 2]}~{blake2b(written.encode(), digest_size=16).hexdigest()}"
