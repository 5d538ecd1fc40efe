"""How far each range of keys is known, and what of it is held back until all ranges are known so far. Pure.

A position is a revision in a history: etcd may be restored or replaced, and then counts again. Events of one range come
in order, so what is known of it is known up to a position; those of two ranges may overtake one another.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

Change = tuple[bytes, bytes | None]

BEFORE_ALL = -1  # the history of what was known before etcd was received


class Position(NamedTuple):
    """A revision in a history; histories are counted by who follows etcd."""

    history: int
    revision: int


class RangeLog:
    """One range: up to where it is known, and what of it is not in force yet."""

    def __init__(self) -> None:
        self.known: Position | None = None
        self.listed: Position | None = None
        self.resumed: Position | None = None  # where etcd was when the range was watched again, if anything was missed
        self.refusal = ""  # why the range cannot be read; it does not count as long as it is refused
        self._ordered: list[tuple[Position, Change]] = []
        self._held: dict[bytes, tuple[Position, tuple[bytes | None, ...]]] = {}

    def __repr__(self) -> str:
        return f"<RangeLog known={self.known} held={len(self._ordered) + len(self._held)} {self.refusal}>"

    @property
    def held_until(self) -> Position | None:
        """The position up to which all ranges must be known, so that nothing is held back any more."""
        return max([position for position, _ in (*self._ordered[-1:], *self._held.values())], default=None)

    @property
    def floor(self) -> Position | None:
        """The position before which the range cannot be judged: what it was then is known in part only."""
        return max(filter(None, (self.listed, self.resumed)), default=None)

    def is_past(self, position: Position) -> bool:
        """Return whether a change had happened already when the range was watched again."""
        return self.resumed is not None and position <= self.resumed

    def is_beside(self, position: Position) -> bool:
        """Return whether what is in force is not of a position: it is of another history or from before."""
        is_of_another = self.known is not None and self.known.history != position.history
        return is_of_another or (self.floor is not None and self.floor > position)

    def keys(self) -> set[bytes]:
        """Return the keys of what is held back: a listing without one of them has outdated it."""
        return {key for _, (key, _) in self._ordered} | self._held.keys()

    def list_at(self, position: Position) -> None:
        """Record that the range was listed."""
        self.known = self.listed = position
        self.refusal = ""
        self.resumed = None

    def resume_at(self, position: Position) -> None:
        """Record where etcd was when the range was watched again: what comes from before may be gone by then."""
        self.resumed = max(self.resumed or position, position)

    def advance(self, position: Position) -> None:
        """Record that the range is known up to a position."""
        self.known = max(self.known or position, position)
        self.refusal = ""

    def append(self, position: Position, key: bytes, value: bytes | None) -> None:
        """Hold a change back, to be taken after those before it."""
        self._ordered.append((position, (key, value)))

    def hold(self, position: Position, key: bytes, value: bytes | None) -> None:
        """Hold a change back, in place of an earlier one of its key."""
        self._held[key] = (position, (value,))

    def holds_back(self, key: bytes) -> bool:
        """Return whether a change of a key is held back."""
        return key in self._held

    def follow_up(self, key: bytes, value: bytes) -> None:
        """Have a value taken right after what is held back of its key."""
        position, (first, *_) = self._held[key]
        self._held[key] = (position, (first, value))

    def let_go(self, key: bytes) -> None:
        """Forget what is held back of a key: a later change is in force already."""
        self._held.pop(key, None)

    def take_until(self, cut: Position) -> Iterator[Change]:
        """Take out what is held back up to a position."""
        due = [change for position, change in takewhile(lambda each: each[0] <= cut, self._ordered)]
        del self._ordered[: len(due)]
        for key in [key for key, (position, _) in self._held.items() if position <= cut]:
            due += [(key, value) for value in self._held.pop(key)[1]]
        return iter(due)
