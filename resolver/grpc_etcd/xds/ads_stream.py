"""One client's xDS stream (state of the world): what it wants, what it has been sent, what to report it next. Pure.

Rule 1: every name that is asked for is answered, also that of a service nobody offers, because gRPC waits 15 s for a
        resource that is kept from it. Only endpoints that are not known yet are waited for.
Rule 2: listeners before clusters before endpoints, so that nothing is referred to before it is there.
Rule 3: an answer of listeners or clusters holds all that the client wants, since one left out counts as deleted; an
        answer of endpoints holds only those that changed.
Rule 4: what cannot be written, or is refused, concerns its own service alone: the others are answered all the same. Nor
        does what one client refuses concern any other: it alone is sent what is left without the wishes.
Rule 5: no answer is larger than gRPC takes (4 MB), or it would drop the stream, and all services on it received nothing
        more. Endpoints are sent in several answers, and a resource that is too large by itself counts as one that
        cannot be written.
Rule 6: resources are written again only when those of their service have been replaced, and looked up only for the
        services that are said to have changed, since many services may share a stream.
Rule 7: an answer of listeners or clusters waits until the client has accepted or refused the one before, and then holds
        what it wants by now: where it had given up a resource that the first answer holds, and wants it again
        meanwhile, it would take it from the first, and for deleted by a second that has it not.
Rule 8: where `spares_earlier`, a client that comes back with what it was sent on an earlier stream keeps that until as
        much is known here: a server that was started again while etcd is down knows less than its clients do. What
        is unknown for a reason that is not everybody's, as without permission to read it or with one of several
        registries away, keeps nothing else back.
Rule 9: what was sent is refused once. Each refusal is logged and counted, so a client that repeated one would fill the
        log.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from grpc_etcd.xds import resources
from grpc_etcd.xds.names import ResourceName, Selection, ServiceName, parse_resource_name
from grpc_etcd.xds.resources import DiscoveryRequest
from grpc_etcd.xds.retries import LONGEST_RETRIES
from grpc_etcd.xds.wire import MalformedMessageError

_ORDER = (resources.LISTENER, resources.CLUSTER, resources.ASSIGNMENT)
_LARGEST_BODY_BYTES = 3500 << 10
_PARCEL_BYTES = 1 << 20  # arbitrary: an answer of endpoints has no more, where it has several
_NONCE = re.compile("[0-9]{1,18}")
_VIRTUAL_HOST = re.compile(r"virtual_hosts\[(\d{1,9})\]")


class Resources(Protocol):
    """What there is to say of one owner; another object means that it may have changed."""

    @property
    def is_known(self) -> bool:
        """Return whether the registry has said what there is."""

    def answer(self, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        """Write a resource; None: it cannot be known yet."""

    def spared(self) -> "Resources | None":
        """Return what leaves a client the endpoints that it has; None: only to send nothing, of others neither."""

    def plain(self) -> "Resources":
        """Return what is left without the wishes that may be at fault."""


class Refusal(NamedTuple):
    """What a client refused, or could not be written: of which owner, and for a shared listener of which member."""

    owner: ServiceName
    type_url: str
    reason: str
    member: int | None = None


class _Sent(NamedTuple):
    source: Resources | None  # None: it is to be written again, whatever the source is
    body: bytes | None


class AdsStream:
    """Not safe for concurrent use; `look_up` gives the present resources of a service."""

    def __init__(self, look_up: Callable[[ServiceName], Resources], *, spares_earlier: bool = False) -> None:
        self._look_up = look_up
        self._spares_earlier = spares_earlier
        # By type: what the client may have of an earlier stream, and is not known here as far as was looked.
        self._earlier: dict[str, dict[str, ServiceName]] = {type_url: {} for type_url in _ORDER}
        self._wanted: dict[str, dict[str, ResourceName]] = {type_url: {} for type_url in _ORDER}
        self._last_sent: dict[str, dict[str, _Sent]] = {type_url: {} for type_url in _ORDER}
        self._requested: dict[str, frozenset[str]] = dict.fromkeys(_ORDER, frozenset())
        self._names: dict[str, Mapping[ServiceName, list[str]]] = {type_url: {} for type_url in _ORDER}
        self._stale: dict[str, dict[str, None]] = {type_url: {} for type_url in _ORDER}  # names to look up, in order
        self._due: set[str] = set()
        # The last answer of each type, until the client has accepted or refused it.
        self._unanswered: dict[str, str] = {}
        self._sent = 0
        self._answered: dict[str, int] = dict.fromkeys(_ORDER, 0)  # the last answer that was accepted or refused
        self._refusals: list[Refusal] = []
        # By type and name: what the client did not take, at most the whole and what was left of it.
        self._refused: dict[tuple[str, str], tuple[bytes, ...]] = {}
        self.owners: frozenset[ServiceName] = frozenset()
        """The services that the client follows."""

    def __repr__(self) -> str:
        return f"<AdsStream about {sorted(owner.service for owner in self.owners)} sent={self._sent}>"

    def receive(self, request: DiscoveryRequest) -> None:
        """Take a request: a first wish, a changed one, or the acceptance or refusal of what was sent."""
        if request.type_url not in self._wanted:
            return
        is_latest = self._unanswered.get(request.type_url) == request.nonce
        if is_latest:
            del self._unanswered[request.type_url]
        if self._is_first_answer(request) and request.refusal:
            blamed = _blamed(request, self._wanted[request.type_url])
            self._refusals += _refusals(request, blamed.values())
            if is_latest:
                self._leave_away(request.type_url, blamed)
        requested = frozenset(request.names)
        if requested == self._requested[request.type_url]:
            return
        is_first = not self._requested[request.type_url]
        self._requested[request.type_url] = requested
        self._want(request)
        if self._spares_earlier and is_first and request.version:
            wanted = self._wanted[request.type_url]
            self._earlier[request.type_url] = {name: parsed.owner for name, parsed in wanted.items()}

    def _is_first_answer(self, request: DiscoveryRequest) -> bool:
        """Return whether a request accepts or refuses what was sent, and is the first to do so: rule 9."""
        nonce = int(request.nonce) if _NONCE.fullmatch(request.nonce) else 0
        is_first = self._answered[request.type_url] < nonce <= self._sent
        if is_first:
            self._answered[request.type_url] = nonce
        return is_first

    def _leave_away(self, type_url: str, blamed: Mapping[str, ResourceName]) -> None:
        """Write again what the client does not take; endpoints have nothing that could be left away.

        A shared listener holds wishes of many, which are left away for all who learn of it.
        """
        last_sent = self._last_sent[type_url]
        for name, parsed in blamed.items():
            before = last_sent.get(name)
            if before and before.body is not None and type_url != resources.ASSIGNMENT and not parsed.owner.is_shared:
                self._refused[type_url, name] = (*self._refused.get((type_url, name), ())[-1:], before.body)
                last_sent[name] = before._replace(source=None)
                self._stale[type_url][name] = None

    def _want(self, request: DiscoveryRequest) -> None:
        """Record of other wishes than before."""
        names = {name: parse_resource_name(name, request.type_url) for name in request.names}
        wanted = {name: parsed for name, parsed in names.items() if parsed}
        if sum(len(each.selected) for each in wanted.values() if each.selection is Selection.RETRIES) > LONGEST_RETRIES:
            raise MalformedMessageError("more retries than any channel can have")  # each costs whoever writes its route
        before = self._wanted[request.type_url]
        if wanted.keys() == before.keys():
            return
        self._wanted[request.type_url] = wanted
        self._names[request.type_url] = names_of = defaultdict[ServiceName, list[str]](list)
        for name, parsed in wanted.items():
            names_of[parsed.owner].append(name)
        stale = {name: None for name in self._stale[request.type_url] if name in wanted}
        self._stale[request.type_url] = stale | dict.fromkeys(name for name in wanted if name not in before)
        self.owners = frozenset(name.owner for wanted in self._wanted.values() for name in wanted.values())
        last_sent = self._last_sent[request.type_url]
        self._last_sent[request.type_url] = {name: each for name, each in last_sent.items() if name in wanted}
        for name in before.keys() - wanted:
            self._refused.pop((request.type_url, name), None)
            self._earlier[request.type_url].pop(name, None)
        self._due.add(request.type_url)

    @property
    def is_answered(self) -> bool:
        """Return whether the client has accepted or refused all that it was sent."""
        return not self._unanswered

    def take_refusals(self) -> list[Refusal]:
        """Return what was refused since the last time."""
        taken, self._refusals = self._refusals, []
        return taken

    def replies(self, changed: Iterable[ServiceName] | None = None) -> Iterator[bytes]:
        """Return what the client has to be sent now, in order; nothing if it is up to date.

        `changed` are the services whose resources may have been replaced; None: any may have been.
        """
        for type_url in _ORDER:
            stale, names = self._stale[type_url], self._names[type_url]
            if changed is None:
                stale |= dict.fromkeys(self._wanted[type_url])
            else:
                stale |= dict.fromkeys(name for owner in changed for name in names.get(owner, ()))
        for type_url in _ORDER:
            if type_url != resources.ASSIGNMENT and (type_url in self._unanswered or self._knows_less(type_url)):
                continue
            for bodies in _parcels(type_url, self._changes(type_url)):
                self._sent += 1
                self._unanswered[type_url] = str(self._sent)
                yield resources.response(self._sent, type_url, str(self._sent), bodies)

    def _knows_less(self, type_url: str) -> bool:
        """Return whether the client may have a resource of a type that is not known here, and may be soon."""
        earlier = self._earlier[type_url]
        for name, owner in tuple(earlier.items()):
            source = self._look_up(owner)
            if source.is_known:
                del earlier[name]
            elif source.spared() is None:
                return True
        return False

    def _changes(self, type_url: str) -> list[bytes]:
        last_sent = self._last_sent[type_url]
        changed = []
        stale, self._stale[type_url] = self._stale[type_url], {}
        for name in stale:
            parsed = self._wanted[type_url][name]
            source, before = self._look_up(parsed.owner), last_sent.get(name)
            if before and before.source is source:
                continue
            if source.is_known:
                self._earlier[type_url].pop(name, None)
            shown = source.spared() if name in self._earlier[type_url] else source
            if shown is None:
                continue
            known = before.body if before else None
            body = self._write(shown, type_url, name, parsed)
            last_sent[name] = _Sent(source, known if body is None else body)
            if body is not None and body != known:
                changed.append(body)
        is_due = type_url in self._due
        self._due.discard(type_url)
        if type_url == resources.ASSIGNMENT or not (changed or is_due):
            return changed
        return [each.body for each in last_sent.values() if each.body is not None]

    def _write(self, source: Resources, type_url: str, requested: str, name: ResourceName) -> bytes | None:
        refused = self._refused.get((type_url, requested), ())
        try:
            body = _fitting(source.answer(type_url, requested, name))
            if body not in refused:
                return body
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one service is sent, and ends no stream
            self._refusals.append(Refusal(name.owner, type_url, f"it cannot be written: {error!r}"))
        try:
            body = _fitting(source.plain().answer(type_url, requested, name))
        except Exception:  # noqa: BLE001 - the first error is the one that counts
            return None
        return None if body in refused else body


def _fitting(body: bytes | None) -> bytes | None:
    """Refuse a resource that no answer could hold."""
    if body and len(body) > _LARGEST_BODY_BYTES:
        raise ValueError(f"{len(body)} bytes are more than gRPC takes")
    return body


def _parcels(type_url: str, bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Divide what is to be sent into answers; listeners and clusters must stay together."""
    parcel: list[bytes] = []
    size = 0
    for body in bodies:
        if parcel and type_url == resources.ASSIGNMENT and size + len(body) > _PARCEL_BYTES:
            yield parcel
            parcel, size = [], 0
        parcel.append(body)
        size += len(body)
    if parcel:
        yield parcel


def _blamed(request: DiscoveryRequest, wanted: Mapping[str, ResourceName]) -> Mapping[str, ResourceName]:
    """Find out which resources a client refused: it names them; else it may have been any."""
    blamed = {
        name: parsed for name, parsed in wanted.items() if _mentions(request.refusal, parsed.format(request.type_url))
    }
    return blamed or wanted


def _refusals(request: DiscoveryRequest, blamed: Iterable[ResourceName]) -> Iterator[Refusal]:
    """Return whose resources a client refused; of a listener it names the virtual host."""
    hosts: set[int | None] = {int(number) for number in _VIRTUAL_HOST.findall(request.refusal)}
    for owner in dict.fromkeys(name.owner for name in blamed):
        for host in (hosts if owner.is_shared else None) or {None}:
            yield Refusal(owner, request.type_url, request.refusal, host)


def _mentions(text: str, name: str) -> bool:
    """Return whether a string names a resource, and not one whose name only begins the same."""
    return name in text and re.search(rf"(?<![\w/.~-]){re.escape(name)}(?![\w/.~%-])", text) is not None
