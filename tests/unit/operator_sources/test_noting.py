"""One object that cannot be noted ends nothing and is tried again; all others are noted at once."""

from typing import Any

from grpc_etcd_operator.isolation import Isolation, Subject
from grpc_etcd_operator.sources.noting import Noting, identify_raw
from testbed.conditions import until


class Notebook:
    """Fails on poisoned objects until it is told to tolerate them."""

    def __init__(self) -> None:
        self.noted: list[tuple[str | None, str]] = []
        self.bears_poison = False

    def note(self, kind: str | None, raw: Any) -> None:
        if raw["metadata"]["name"].startswith("poison") and not self.bears_poison:
            raise AttributeError(raw["metadata"]["name"])
        self.noted.append((kind, raw["metadata"]["name"]))


def item(name: str, uid: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop", "uid": uid}}


async def test_the_latest_event_of_an_object_in_trouble_is_tried_again() -> None:
    book, isolation = Notebook(), Isolation()
    noting = Noting("pods", book.note, identify_raw, isolation)
    noting("ADDED", item("poison-old", "1"))
    noting("MODIFIED", item("poison-new", "1"))
    noting("ADDED", item("good", "2"))
    assert book.noted == [("ADDED", "good")]
    await until(lambda: isolation.counts["pods"] > 2)
    book.bears_poison = True
    await until(lambda: len(book.noted) > 1)
    assert book.noted[1:] == [("MODIFIED", "poison-new")]
    noting.close()


async def test_an_event_that_heals_ends_the_trying_again() -> None:
    book, isolation = Notebook(), Isolation()
    noting = Noting("pods", book.note, identify_raw, isolation)
    noting("ADDED", item("poison", "1"))
    noting("MODIFIED", item("mended", "1"))
    assert book.noted == [("MODIFIED", "mended")]
    assert not noting.waiting
    noting("ADDED", {})
    assert noting.waiting == {""}, "an object without a name is poison, too"
    noting.close()
    assert not noting.waiting


async def test_an_object_that_cannot_be_read_is_reported_by_what_it_is() -> None:
    book, isolation = Notebook(), Isolation()
    noting = Noting("pods", book.note, identify_raw, isolation)
    noting("ADDED", item("poison", "1"))
    noting("ADDED", {})
    reported = [subject for subject, _ in isolation.faults.take(0.0)]
    assert reported == [Subject("1", "pods", "shop", "poison")], "what has no name can be reported nowhere"
    noting.close()
