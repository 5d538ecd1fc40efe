"""The seam between Kubernetes and whoever concludes something from it.

A source delivers the objects of one kind in one namespace (or in all), each in its typed form, and then every change.
Whoever receives them does not know which source it was. What a source owes:

* It delivers whatever there is at least once, and each change at least once; late or twice is no fault.
* It ends with no error of the API server's: it obeys Retry-After, begins with a list after 410, and whenever the
  stream's `relist` is called, which happens after silence and after versions that went back.
* A deletion that it cannot report (it fell into a gap) is found by a comparison. A source that has listed all hands
  over the list for that (`take_list`); after the lists of any other `Freshness.on_opened` asks for a resync.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Receiver(Generic[T_contra]):
    """Whom a source delivers to.

    `note` takes an event's kind (ADDED, MODIFIED, DELETED, None: listed) and the object; it is quick and never fails.
    `take_list` takes a namespace (empty: all) and the UIDs of a complete list, each of which has been noted.
    """

    note: Callable[[str | None, T_contra], None]
    take_list: Callable[[str, frozenset[str]], None]


class Source(Protocol[T_co]):
    """Delivers objects of one kind."""

    @property
    def kind(self) -> str:
        """Name the kind as Kubernetes' URLs do."""

    async def run(self, receiver: Receiver[T_co]) -> None:
        """Deliver until cancelled."""
