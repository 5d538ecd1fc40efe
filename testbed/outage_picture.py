"""Draw what a client calls in an outage: what the library's own law decides, step by step (`discovery/state.py`).

Each step is what etcd holds then; whom the client calls, and from which source, comes from a `Reader` that is given
just that. So a law that changes changes the picture.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpc_etcd.discovery.positions import Position
from grpc_etcd.discovery.state import Reader, ResolverState, Source
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import synced_key
from grpc_etcd.xds.localities import is_callable
from testbed.build import ROOT
from testbed.drawing import MARGIN, picture, rect, text

PICTURE = ROOT / "docs/pictures/outage.svg"
SYNCED = "✓"
SERVICE = "greeter"
LABEL_WIDTH, COLUMN, CHIP, ROW = 96, 112, 26, 34
KINDS = {Source.REGISTRY: "good", Source.STALE: "warn"}


@dataclass(frozen=True, slots=True)
class Step:
    """What etcd holds: a letter for each endpoint, and the synced key. `holds` of None: it does not answer."""

    caption: str
    holds: str | None
    is_lost: bool = False  # all that etcd held before is gone, and its revisions begin again


SCENES: Mapping[str, tuple[Step, ...]] = {
    "A Deployment is scaled to zero": (Step("normal", "AB✓"), Step("scaled", "✓")),
    "etcd is down for a while; Pod A ends meanwhile": (
        Step("normal", "AB✓"),
        Step("etcd is down", None),
        Step("etcd is back", "B✓"),
    ),
    "Every replica of the operator is down": (
        Step("normal", "AB✓"),
        Step("all end", "AB"),
        Step("leases end", ""),
        Step("back; A gone", "B✓"),
    ),
    "etcd loses its data": (
        Step("normal", "AB✓"),
        Step("data is lost", "", is_lost=True),
        Step("B is written", "B"),
        Step("all is written", "BC✓"),
    ),
    "Servers register themselves, without an operator": (
        Step("normal", "AB"),
        Step("A leaves", "B"),
        Step("B leaves", ""),
    ),
}


def outputs() -> Mapping[Path, str]:
    """Give the picture."""
    return {PICTURE: draw()}


def views(steps: Iterable[Step]) -> Iterator[ResolverState]:
    """Yield what a client sees at each step."""
    reader, history, revision = Reader(SERVICE, [Jupiter()], "jupiter"), 0, 100
    for step in steps:
        history, revision = (history + 1, 1) if step.is_lost else (history, revision + 1)
        if step.holds is not None:
            records = [_record(each) for each in step.holds]
            for keys in reader.ranges:
                reader.take_listing(
                    keys, [each for each in records if keys.holds(each[0])], Position(history, revision)
                )
        yield reader.view


def called(view: ResolverState) -> str:
    """Return the letters of the endpoints that calls go to."""
    endpoints = view.snapshot.endpoints if view.snapshot else ()
    return "".join(each.metadata["letter"] for each in endpoints if is_callable(each))


def _record(letter: str) -> tuple[bytes, bytes]:
    if letter == SYNCED:
        return synced_key("cluster"), b""
    address = f"10.0.0.{ord(letter)}:50051"
    found = Jupiter().encode(SERVICE, Endpoint(name=SERVICE, address=address, metadata={"letter": letter}))
    if not isinstance(found, KeyValue):
        raise TypeError(f"{letter!r} has no key: {found}")
    return found.key, found.value


def draw() -> str:
    """Return the picture of all scenes."""
    parts, words, y = list(_legend()), [], 112.0
    for title, steps in SCENES.items():
        parts.append(text(MARGIN, y + 20, title, "strong"))
        parts += [
            text(MARGIN, y + 46 + ROW * n, lane, "soft") for n, lane in enumerate(("", "etcd holds", "calls go to"))
        ]
        found = list(zip(steps, views(steps), strict=True))
        for number, (step, view) in enumerate(found):
            parts += _column(MARGIN + LABEL_WIDTH + COLUMN * number, y + 46, step, view)
        words.append(f"{title}: {'; '.join(_in_words(step, view) for step, view in found)}.")
        y += 46 + 3 * ROW - 10
    return picture("What a client calls in an outage", " ".join(words), y, parts)


def _legend() -> Iterator[str]:
    yield text(MARGIN, 30, "What a client calls in an outage", "strong")
    x = MARGIN
    for kind, mark, words, width in (
        ("box", SYNCED, "synced key", 138),
        ("good", "A", "as etcd holds or held", 212),
        ("warn", "A", "stale: last known", 0),
    ):
        yield from _chip(x, 66, kind, mark)
        yield text(x + CHIP + 8, 66, words, "soft")
        x += width
    yield text(MARGIN, 98, "Time goes from left to right.", "soft")


def _column(x: float, y: float, step: Step, view: ResolverState) -> Iterator[str]:
    yield text(x, y, step.caption)
    yield from _chips(x, y + ROW, "box", step.holds, "no answer")
    yield from _chips(x, y + 2 * ROW, KINDS[view.source], called(view), "nobody")


def _chips(x: float, y: float, kind: str, letters: str | None, without: str) -> Iterator[str]:
    if not letters:
        yield text(x, y, "nothing" if letters is not None and kind == "box" else without, "soft")
    for number, letter in enumerate(letters or ""):
        yield from _chip(x + (CHIP + 4) * number, y, kind, letter)


def _chip(x: float, y: float, kind: str, letter: str) -> Iterator[str]:
    yield rect(x, y - 19, CHIP, CHIP, kind, radius=5)
    yield text(x + CHIP / 2, y, letter, anchor="middle")


def _in_words(step: Step, view: ResolverState) -> str:
    held = "does not answer" if step.holds is None else f"holds {_named(step.holds) or 'nothing'}"
    return f"{step.caption}, etcd {held}, calls go to {_named(called(view)) or 'nobody'} ({view.source})"


def _named(letters: str) -> str:
    return " and ".join("the synced key" if letter == SYNCED else letter for letter in letters)
