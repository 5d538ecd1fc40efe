"""An API server that answers late is no API server that is away: its watches go on, and nothing is listed again."""

import asyncio
import time
from http import HTTPStatus
from types import SimpleNamespace

import pytest

from grpc_etcd_operator.kube.client import ApiError, Client
from grpc_etcd_operator.kube.freshness import Freshness, Stream
from grpc_etcd_operator.kube.probing import Prober
from grpc_etcd_operator.registry.election import RESIGN_SECONDS
from tests.simulation.virtual_time import run, virtual_time

MINUTES = 10


class Late(Client):
    """An API server that takes so many seconds for each answer; its watches have nothing to report."""

    def __init__(self, answer_seconds: float, refusal: HTTPStatus | None) -> None:
        self.answer_seconds, self.refusal = answer_seconds, refusal

    async def probe(self, resource: str, namespace: str) -> str:  # noqa: ARG002
        await asyncio.sleep(self.answer_seconds)
        if self.refusal:
            raise ApiError(self.refusal, "refused")
        return "7"


class Quiet:
    """As much of a watch's response as is looked at."""

    closed = False
    content = SimpleNamespace(total_bytes=0)


def make_open(stream: Stream) -> list[float]:
    """Let a watch be open; return when it is ended."""
    ends, stream.last_event_at = list[float](), time.monotonic()
    stream.response, stream.relist = Quiet(), lambda: ends.append(time.monotonic())  # type: ignore[assignment]  # as above
    return ends


async def follow(answer_seconds: float, refusal: HTTPStatus | None = None) -> tuple[list[float], float]:
    """Return when the watch was ended, and for how long at most nothing was seen."""
    freshness = Freshness(lambda _, __: None, [("pods", "")])
    ends = make_open(freshness.stream("pods", ""))
    probing = asyncio.create_task(Prober(Late(answer_seconds, refusal), freshness, silence_seconds=3600.0).run())
    longest, until = 0.0, time.monotonic() + MINUTES * 60
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        freshness.stream("pods", "").last_event_at = time.monotonic()  # no bookmark is late
        longest = max(longest, freshness.blind_seconds())
    probing.cancel()
    return ends, longest


@pytest.mark.parametrize("answer_seconds", [0.01, 2.9, 4.0, 5.5])
def test_a_watch_goes_on_though_the_api_server_answers_late(answer_seconds: float) -> None:
    with virtual_time(1) as clock:
        ends, longest = run(follow(answer_seconds), clock)
    assert not ends
    assert longest < RESIGN_SECONDS


def test_a_watch_of_an_api_server_that_does_not_answer_is_ended_once() -> None:
    with virtual_time(1) as clock:
        began = time.monotonic()
        ends, longest = run(follow(9e9), clock)
        assert [RESIGN_SECONDS < at - began < RESIGN_SECONDS + 2 for at in ends] == [True]
    assert longest > RESIGN_SECONDS


def test_a_watch_goes_on_though_the_api_server_takes_no_further_requests() -> None:
    with virtual_time(1) as clock:
        ends, longest = run(follow(0.1, HTTPStatus.TOO_MANY_REQUESTS), clock)
    assert not ends
    assert longest < RESIGN_SECONDS


def test_what_may_not_be_read_is_not_seen() -> None:
    with virtual_time(1) as clock:
        _, longest = run(follow(0.1, HTTPStatus.FORBIDDEN), clock)
    assert longest > RESIGN_SECONDS


def test_whoever_notes_first_that_pods_may_not_be_read_says_so_in_the_same_words() -> None:
    """A probe may be quicker than the watch: conditions hold what was said first."""

    async def ask() -> str:
        freshness = Freshness(lambda _, __: None, [("pods", "shop")])
        probing = asyncio.create_task(Prober(Late(0.1, HTTPStatus.FORBIDDEN), freshness).run())
        await asyncio.sleep(60)
        probing.cancel()
        return freshness.stream("pods", "shop").fault

    with virtual_time(1) as clock:
        assert run(ask(), clock) == "pods cannot be read (refused (403))"
