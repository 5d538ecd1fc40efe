"""What the demo looks at: the keys that etcd holds, and the answers that a client gets, each with its time.

The client is an ordinary program of the library's: it calls a service by name, one call after the other, and knows
nothing of Kubernetes. Neither observer is told what the demo does.
"""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

import grpc_etcd
from grpc_etcd.etcd import Etcd, Put, WatchEvents, WatchSnapshot
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.endpoint import Endpoint
from testbed.greeter import say_hello

PAUSE_SECONDS = 0.002
CALL_SECONDS = 5.0
# So many answers in a row without an endpoint say that the client has left it; round robin gives each its turn.
QUIET_CALLS = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """One call: when it began, and who answered; `error` where nobody did."""

    began: float
    address: str
    error: str = ""


class Caller:
    """Calls `greeter` by name without a break, in a thread of its own, and remembers every answer."""

    def __init__(self, endpoints: str, service: str) -> None:
        self.answers: list[Answer] = []
        self._registry = grpc_etcd.Registry(endpoints)
        self._channel = self._registry.insecure_channel(service)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._call_for_ever, name="caller")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._channel.close()
        self._registry.close()

    def stop(self) -> None:
        """Stop calling, so that all who look from now on see the same numbers."""
        self._stopping.set()
        self._thread.join()

    def _call_for_ever(self) -> None:
        hello = say_hello(self._channel)
        while not self._stopping.wait(PAUSE_SECONDS):
            began = time.monotonic()
            try:
                self.answers.append(Answer(began, hello("demo", timeout=CALL_SECONDS)))
            except grpc.RpcError as error:
                self.answers.append(Answer(began, "", str(error)))

    @property
    def failures(self) -> list[Answer]:
        """Calls without an answer."""
        return [answer for answer in self.answers if answer.error]

    def arrived(self, address: str, since: float) -> float | None:
        """When the first call since then began that the address answered."""
        return next((a.began for a in self._since(since) if a.address == address), None)

    def left(self, address: str, since: float) -> float | None:
        """When the first call after the address's last one began, once enough others have followed."""
        answers = self._since(since)
        last = max((number for number, a in enumerate(answers) if a.address == address), default=-1)
        return answers[last + 1].began if len(answers) > last + QUIET_CALLS else None

    def calls_each(self, since: float) -> dict[str, int]:
        """How many calls each address has answered since then."""
        counts: dict[str, int] = {}
        for answer in self._since(since):
            counts[answer.address] = counts.get(answer.address, 0) + 1
        return counts

    def _since(self, since: float) -> list[Answer]:
        start = len(self.answers)
        while start and self.answers[start - 1].began >= since:
            start -= 1
        return self.answers[start:]


class KeyWatcher:
    """Follows the provider keys of one service, in a thread of its own, with the time of each change."""

    def __init__(self, endpoints: str, service: str) -> None:
        self._layout = make_layout("jupiter")
        self._service = service
        self.keys: dict[bytes, str] = {}
        self._put: dict[str, float] = {}
        self._deleted: dict[str, float] = {}
        self.revision = 0
        self._etcd = Etcd(endpoints)
        self._news = self._etcd.list_watch(self._layout.prefix(service))
        self._thread = threading.Thread(target=self._follow, name="key watcher")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._etcd.close()
        self._thread.join()

    def _follow(self) -> None:
        for news in self._news:
            match news:
                case WatchSnapshot(records=records):
                    for record in records:
                        self._see_put(record.key, record.value)
                case WatchEvents(events=events):
                    for event in events:
                        if isinstance(event, Put):
                            self._see_put(event.key, event.record.value)
                        elif address := self.keys.pop(event.key, ""):
                            self._deleted[address] = time.monotonic()

    def _see_put(self, key: bytes, value: bytes) -> None:
        endpoint = self._layout.decode(self._service, key, value)
        if isinstance(endpoint, Endpoint):
            self.keys[key] = endpoint.address
            self._put[endpoint.address] = time.monotonic()

    @property
    def addresses(self) -> frozenset[str]:
        """Every address that has a key now."""
        return frozenset(self.keys.values())

    def put_since(self, address: str, since: float) -> float | None:
        """When the address got its key, if that was after `since`."""
        return when if (when := self._put.get(address, 0.0)) >= since else None

    def deleted_since(self, address: str, since: float) -> float | None:
        """When the address lost its key, if that was after `since`."""
        return when if (when := self._deleted.get(address, 0.0)) >= since else None
