"""What a GrpcService claims in the registries, when two claims conflict, and who holds them. Pure.

A claim is a key prefix in one etcd, whatever name, layout or alias it comes from: the prefix of each layout, the key of
the client policy (routes are below a layout's prefix), and the metric targets where a metricsPort is set. Two claims
of different namespaces conflict when one prefix is, contains or lies within the other.

Who holds a claim keeps it. Its age is that of the claim, not of the object; it is in the object's status, which
owners of objects may not edit, as `claims: [{registry, prefix, since}]`. Nothing is written before it is there.
Where two hold conflicting claims all the same (a restored API server), the earlier one counts.

Every claim ends with `/`, so what contains it is found by its own slashes and what lies within it in an index by those:
a question costs as much as a prefix has slashes, however many GrpcServices there are.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from grpc_etcd.layouts.configurators import METRIC_PREFIX
from grpc_etcd.layouts.index import LAYOUT_NAMES, WITHOUT_PREFIX, make_layout
from grpc_etcd.layouts.jupiter_v2 import GOVERNOR_SCHEME, JupiterV2
from grpc_etcd.registry.layout import Layout
from grpc_etcd.registry.own import ROOT, policy_key
from grpc_etcd_operator.core.services import DEFAULT_PREFIX, Spec

SLASH = b"/"
ANY_SERVICE = "x"
DEFAULT_SCHEME = "grpc"


class Claim(NamedTuple):
    """A key prefix in one registry, by the name that the settings give it."""

    registry: str
    prefix: bytes


class Rank(NamedTuple):
    """Who goes first of several that hold what conflicts: the earliest claim, then the oldest object."""

    since: str
    created: str
    uid: str


UNKNOWN = "?"  # no registry's name can be that: where claims are noted whose registry the settings do not have
LAST = Rank("\U0010ffff", "", "")  # of who holds nothing yet


class Blocked(NamedTuple):
    """Why a claim cannot be had: `holder` (a UID) holds what conflicts with it."""

    claim: Claim
    holder: str


def claims_of(spec: Spec, registries: Collection[str]) -> tuple[Claim, ...]:
    """List what a GrpcService claims in those of its registries that there are."""
    found = (
        Claim(registry, prefix)
        for registry in spec.registries
        if registry in registries
        for prefix in _prefixes(spec, registry)
    )
    return tuple(dict.fromkeys(found))


def _prefixes(spec: Spec, registry: str) -> Iterator[bytes]:
    for layout in spec.layouts[registry]:
        if isinstance(layout, JupiterV2):  # the scheme of its keys is the endpoint's, and a governor's its own
            for scheme in (DEFAULT_SCHEME, GOVERNOR_SCHEME, spec.scheme):
                yield replace(layout, scheme=scheme).prefix(spec.registry_name)
        else:
            yield layout.prefix(spec.registry_name)
    # Claimed whether or not there is a policy: else whoever has the name in another layout could write one.
    yield policy_key(spec.prefixes[registry], spec.registry_name) + SLASH
    if spec.metrics_port is not None:
        yield METRIC_PREFIX + spec.registry_name.encode(errors="replace") + SLASH


def read_claims(status: Mapping[str, Any]) -> dict[Claim, str]:
    """Read the claims that a status holds, with the time since when; what is not a claim is skipped."""
    found: dict[Claim, str] = {}
    entries = status.get("claims")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and all(
            isinstance(entry.get(part), str) for part in ("registry", "prefix", "since")
        ):
            claim = Claim(entry["registry"], entry["prefix"].encode(errors="replace"))
            found[claim] = min(entry["since"], found.get(claim, entry["since"]))
    return found


def write_claims(held: Mapping[Claim, str]) -> list[dict[str, str]]:
    """Write claims as a status holds them, in an order of their own."""
    return [
        {"registry": claim.registry, "prefix": claim.prefix.decode(errors="replace"), "since": since}
        for claim, since in sorted(held.items())
    ]


class Rules:
    """What may be claimed at all: never a key of the operator's own, a layout's root, or a prefix that nobody allowed.

    `prefix` is the operator's own, `allowed` are those that an admin lists for `spec.prefix`.
    """

    def __init__(self, prefix: str | None = None, allowed: Iterable[str] = ()) -> None:
        self._prefix, self._allowed = prefix, tuple(each.strip("/") for each in allowed)
        roots = {ROOT, METRIC_PREFIX, *(root for name in LAYOUT_NAMES for root in self._roots(name))}
        self.reserved = frozenset(each for root in roots if root for each in (*ancestors(root), root))

    def _roots(self, layout: str) -> Iterator[bytes]:
        for prefix in (None, self._prefix, *self._allowed, *(f"/{each}" for each in self._allowed)):
            yield root_of(make_layout(layout, prefix))

    def prefix_fault(self, spec: Spec) -> str | None:
        """Return why `spec.prefix` may not be used; None: it may, or there is none."""
        if not spec.prefix or self._is_allowed(spec.prefix):
            return None
        if layout := next(
            (each for found in spec.layouts.values() for each in found if not self._is_own(spec, each)), None
        ):
            return (
                f"spec.prefix {spec.prefix!r} is not allowed with the layout {layout.name}: remove it, or ask an "
                f"admin to allow it with the operator's setting --allowed-prefix (allowedPrefixes in the chart's "
                f"values)"
            )
        return None

    def _is_own(self, spec: Spec, layout: Layout) -> bool:
        """Return whether `spec.prefix` names what a layout would write under without it."""
        if layout.name in WITHOUT_PREFIX:
            return spec.prefix.strip("/") in {DEFAULT_PREFIX, self._prefix}
        return root_of(layout) in {root_of(make_layout(layout.name, prefix)) for prefix in (None, self._prefix)}

    def _is_allowed(self, prefix: str) -> bool:
        wanted = prefix.strip("/")
        return any(wanted == each or wanted.startswith(f"{each}/") for each in self._allowed)

    def reserved_fault(self, spec: Spec, claims: Iterable[Claim], held: Collection[Claim]) -> str | None:
        """Return which claim would reach the operator's own keys, or all services of a layout; None if none does.

        A claim that is held already stays, when an admin allows a prefix below it.
        """
        for claim in claims:
            policy = policy_key(spec.prefixes[claim.registry], spec.registry_name) + SLASH
            is_reserved = claim.prefix in self.reserved and claim not in held
            if claim.prefix != policy and (is_reserved or claim.prefix.startswith(ROOT)):
                prefix = claim.prefix.decode(errors="replace")
                return f"keys below {prefix} are reserved, for the operator or as the root of other services' keys"
        return None


def root_of(layout: Layout) -> bytes:
    """Return the prefix that all services of a layout share; empty where there is none."""
    return b"" if isinstance(layout, JupiterV2) else layout.prefix(ANY_SERVICE)[: -len(ANY_SERVICE) - 1]


def ancestors(prefix: bytes) -> Iterator[bytes]:
    """Return all shorter prefixes that end at a slash, the shortest first."""
    end = prefix.find(SLASH)
    while 0 <= end < len(prefix) - 1:
        yield prefix[: end + 1]
        end = prefix.find(SLASH, end + 1)


class Place(NamedTuple):
    """Where claims are noted: at a prefix of an etcd, or anywhere below it."""

    etcd: str
    prefix: bytes
    is_below: bool


class Contenders:
    """Who holds claims at one place, or below it. The first of another namespace is found without a search."""

    def __init__(self) -> None:
        self._ranks: dict[str, list[Rank]] = {}
        self._firsts: list[tuple[Rank, str]] = []

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def add(self, namespace: str, rank: Rank) -> None:
        """Take one more claim."""
        ranks = self._ranks.setdefault(namespace, [])
        old = ranks[0] if ranks else None
        insort(ranks, rank)
        self._note_first(namespace, old, ranks[0])

    def remove(self, namespace: str, rank: Rank) -> None:
        """Drop a claim that was added."""
        ranks = self._ranks[namespace]
        old = ranks[0]
        del ranks[bisect_left(ranks, rank)]
        self._note_first(namespace, old, ranks[0] if ranks else None)
        if not ranks:
            del self._ranks[namespace]

    def _note_first(self, namespace: str, old: Rank | None, new: Rank | None) -> None:
        if old == new:
            return
        if old is not None:
            del self._firsts[bisect_left(self._firsts, (old, namespace))]
        if new is not None:
            insort(self._firsts, (new, namespace))

    def first_beside(self, namespace: str) -> Rank | None:
        """Return the first of all other namespaces."""
        return next((rank for rank, of in self._firsts[:2] if of != namespace), None)

    def after(self, rank: Rank, namespace: str) -> Iterator[Rank]:
        """Return those of all other namespaces that come after a rank.

        There are none but where something went wrong.
        """
        for _, other in self._firsts:
            ranks = self._ranks[other] if other != namespace else []
            yield from ranks[bisect_left(ranks, rank) :]


class Ledger:
    """All claims that are held, and who waits for which holder.

    `etcds` says which etcd is behind a registry's name: names of one etcd share its claims. A name that the settings
    lack may be the old one of any of them, and its keys still are there. So its claims keep everybody else's new
    ones waiting, in every etcd; they take nothing from who holds something already.
    """

    def __init__(self, etcds: Mapping[str, str], reserved: Collection[bytes], *, shared_names: bool = False) -> None:
        self._etcds, self._reserved, self._shared_names = etcds, reserved, shared_names
        self._noted: dict[Place, Contenders] = {}
        self._held: dict[str, dict[Claim, Rank]] = {}
        self._waiting: dict[str, dict[str, None]] = {}
        self._waits_for: dict[str, set[str]] = {}

    def hold(self, uid: str, namespace: str, created: str, claims: Mapping[Claim, str]) -> set[str]:
        """Take all that one holds now; return who has to be looked at again: who waited for it, and who comes after."""
        old = self._held.get(uid, {})
        new = {claim: Rank(since, created, uid) for claim, since in claims.items()}
        lost = [claim for claim, rank in old.items() if new.get(claim) != rank]
        for claim in lost:
            self._remove(claim, namespace, old[claim])
        overtaken: set[str] = set()
        for claim in (claim for claim, rank in new.items() if old.get(claim) != rank):
            for place in self._rivals(claim):
                overtaken.update(rank.uid for rank in place.after(new[claim], namespace))
            for where in self._places(claim):
                self._noted.setdefault(where, Contenders()).add(namespace, new[claim])
        self._held[uid] = new
        if not new:
            del self._held[uid]
        return overtaken.union(self._waiting.pop(uid, ())) if lost else overtaken

    def held(self, uid: str) -> Mapping[Claim, str]:
        """Return what one holds, with the time since when."""
        return {claim: rank.since for claim, rank in self._held.get(uid, {}).items()}

    def find_blocked(self, uid: str, namespace: str, claims: Iterable[Claim]) -> Blocked | None:
        """Find the first of some claims that another namespace keeps one from having, and who does."""
        mine = self._held.get(uid, {})
        for claim in claims:
            rivals = [*self._rivals(claim), *(() if claim in mine else self._rivals(claim, UNKNOWN))]
            firsts = [rank for place in rivals if (rank := place.first_beside(namespace))]
            if firsts and (first := min(firsts)) < mine.get(claim, LAST):
                return Blocked(claim, first.uid)
        return None

    def wait(self, uid: str, holder: str | None) -> None:
        """Record that one waits for another too to let go; None: it waits for nobody any more."""
        if holder is not None:
            self._waits_for.setdefault(uid, set()).add(holder)
            self._waiting.setdefault(holder, {})[uid] = None
            return
        for before in self._waits_for.pop(uid, ()):
            self._waiting.get(before, {}).pop(uid, None)

    def _remove(self, claim: Claim, namespace: str, rank: Rank) -> None:
        for place in self._places(claim):
            contenders = self._noted[place]
            contenders.remove(namespace, rank)
            if not contenders:
                del self._noted[place]

    def _places(self, claim: Claim) -> Iterator[Place]:
        """Return all places at which a claim is noted: its own, and above it those that can be claimed at all."""
        for etcd in (self._etcd(claim),) if claim.registry in self._etcds else (self._etcd(claim), UNKNOWN):
            yield Place(etcd, claim.prefix, is_below=False)
            for prefix in ancestors(claim.prefix):
                if prefix not in self._reserved:
                    yield Place(etcd, prefix, is_below=True)

    def _etcd(self, claim: Claim) -> str:
        return self._etcds.get(claim.registry, claim.registry)

    def _rivals(self, claim: Claim, etcd: str = "") -> Iterator[Contenders]:
        """Return those who hold something at, above or below a claim: in its own etcd, or in another."""
        etcd = etcd or self._etcd(claim)
        places = [Place(etcd, prefix, is_below=False) for prefix in ancestors(claim.prefix)]
        places.append(Place(etcd, claim.prefix, is_below=True))
        if not self._shared_names:
            places.append(Place(etcd, claim.prefix, is_below=False))
        return (found for place in places if (found := self._noted.get(place)))


def parse_etcds(endpoints: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return by its first name which registries are one etcd.

    Those that share an endpoint, directly or through others.
    """
    etcds: dict[str, str] = {}
    known: dict[str, set[str]] = {}
    for registry, addresses in endpoints.items():
        mine = {_same_host(address) for address in addresses}
        joined = [etcd for etcd, others in known.items() if others & mine]
        first = next(iter(joined), registry)
        known[first] = mine.union(*(known.pop(etcd) for etcd in joined))
        etcds |= {each: first for each, etcd in etcds.items() if etcd in joined} | {registry: first}
    return etcds


def _same_host(address: str) -> str:
    """Write an endpoint in one way of several: with a scheme, a slash at its end, or the dot of a full name."""
    host, _, port = address.rpartition("://")[2].rstrip("/").lower().rpartition(":")
    return f"{host.rstrip('.')}:{port.lstrip('0')}"
