"""Bursts go out as each layout's clients tolerate them, and end with one flush key; a single change gets none."""

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from grpc_etcd.etcd import Deleted, Etcd, WatchEvents, WatchSnapshot
from grpc_etcd.layouts.index import make_layout
from testbed.conditions import PATIENCE_SECONDS, wait_until
from tests.e2e.conftest import Scene

SERVICE = "greeter"


class Reader:
    """Follows a prefix as a client does: what came in which revision, and which touches."""

    def __init__(self, endpoints: str, prefix: bytes) -> None:
        self._etcd = Etcd(endpoints)
        self._watch = self._etcd.list_watch(prefix)
        self.keys_by_revision: collections.Counter[int] = collections.Counter()
        self.flushes: list[int] = []
        self._is_listed = Event()
        self._thread = Thread(target=self._follow)
        self._thread.start()
        assert self._is_listed.wait(PATIENCE_SECONDS)

    def _follow(self) -> None:
        for news in self._watch:
            if isinstance(news, WatchSnapshot):
                self._is_listed.set()
            for event in news.events if isinstance(news, WatchEvents) else ():
                if b"settled" in event.key:
                    self.flushes += [] if isinstance(event, Deleted) else [event.revision]
                else:
                    self.keys_by_revision[event.revision] += 1

    def is_settled(self) -> bool:
        """Whether a touch came after all else; where the machine is busy one burst may have become several."""
        return bool(self.flushes) and self.flushes[-1] > max(self.keys_by_revision)

    def close(self) -> None:
        self._watch.close()
        self._thread.join()
        self._etcd.close()


@contextmanager
def reading(scene: Scene, prefix: bytes) -> Iterator[Reader]:
    reader = Reader(scene.etcd.endpoints, prefix)
    try:
        yield reader
    finally:
        reader.close()


@pytest.mark.parametrize("name", ["jupiter", "jupiter-v2", "go-micro", "etcd-naming"])
def test_a_burst_is_split_as_the_layouts_readers_bear_it_and_settled(scene: Scene, name: str) -> None:
    layout = make_layout(name, None)
    scene.start().wait_leading()
    scene.apply(layouts=[name])
    pods = [scene.pod(ready=False) for _ in range(40)]
    with reading(scene, layout.prefix(SERVICE)) as reader, ThreadPoolExecutor(16) as workers:
        for change, total in ((scene.kubelet.ready, 40), (scene.kubelet.unready, 80)):
            list(workers.map(change, pods))
            wait_until(lambda total=total: reader.keys_by_revision.total() == total, "all keys have come or gone")
            if layout.limits.flush_key:
                wait_until(reader.is_settled, "readers are made to publish the full set")
        if layout.limits.keys_per_transaction:
            assert max(reader.keys_by_revision.values()) <= layout.limits.keys_per_transaction
        assert reader.is_settled() == layout.limits.flush_key


def test_a_reader_that_misses_the_flush_key_gets_another_one_and_no_more(scene: Scene) -> None:
    scene.start("--leader-ttl=60").wait_leading()
    scene.apply()
    scene.apply("other", selector={"matchLabels": {"app": "other"}})
    with reading(scene, b"/jupiter/greeter/") as reader, ThreadPoolExecutor(4) as workers:
        pods = list(workers.map(lambda _: scene.pod(), range(4)))
        scene.registry.wait_addresses(*(pod.address for pod in pods))
        wait_until(reader.is_settled, "the flush key after the burst")
        first = len(reader.flushes)
        wait_until(lambda: len(reader.flushes) > first, "the second one, for readers that were held up")
        # A burst of another service has its second one later than a third of ours would have come.
        others = list(workers.map(lambda _: scene.pod(labels={"app": "other"}), range(4)))
        scene.registry.wait_addresses(*(pod.address for pod in others), name="other")
        flush = f"/jupiter/other/settled/{scene.cluster}".encode()
        wait_until(lambda: (found := scene.client.get(flush)) and found.version > 1, "the other's second flush key")
        assert len(reader.flushes) == first + 1


def test_a_single_change_gets_no_touch(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    scene.apply("busy", selector={"matchLabels": {"app": "busy"}})
    with reading(scene, b"/jupiter/greeter/") as reader:
        pod = scene.pod()
        scene.registry.wait_addresses(pod.address)
        # A burst of another service has its flush key later than one of ours would have come.
        burst = [scene.pod(labels={"app": "busy"}) for _ in range(3)]
        scene.registry.wait_addresses(*(each.address for each in burst), name="busy")
        flush = f"/jupiter/busy/settled/{scene.cluster}".encode()
        wait_until(lambda: scene.client.get(flush), "the burst's touch")
        assert reader.flushes == []
