"""Until when a first answer is waited for."""

import pytest

from grpc_etcd.client.union import is_waiting, merge_views
from grpc_etcd.discovery.reasons import Cause, Facts, explain
from grpc_etcd.discovery.state import ResolverState, Source
from grpc_etcd.discovery.waiting import (
    CACHE_SECONDS,
    NAMES_SECONDS,
    OVER,
    PATIENCE_SECONDS,
    SILENCE_SECONDS,
    waits_until,
)
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.snapshot import Snapshot

BEGUN = 100.0
LOST = 200.0


def view(source: Source, *, enable: bool | None = None) -> ResolverState:
    """Give a view without endpoints, or with one that is enabled or not."""
    endpoints = () if enable is None else (Endpoint(name="x", address="10.0.0.1:1", enable=enable),)
    return ResolverState(source, Snapshot("x", 1, endpoints))


UNKNOWN, EMPTY, DISABLED = ResolverState(), view(Source.CACHE), view(Source.CACHE, enable=False)
CACHED = view(Source.CACHE, enable=True)


@pytest.mark.parametrize("known", [UNKNOWN, EMPTY, DISABLED], ids=["nothing", "an empty set", "a disabled endpoint"])
def test_what_names_nobody_to_call_is_waited_with_until_an_outage_lasts(known: ResolverState) -> None:
    assert waits_until(known, "", BEGUN, None) == BEGUN + SILENCE_SECONDS
    assert waits_until(known, "", BEGUN + LOST, LOST) == LOST + PATIENCE_SECONDS
    assert waits_until(known, "", BEGUN, BEGUN + SILENCE_SECONDS) == BEGUN + SILENCE_SECONDS


def test_a_set_on_disk_is_used_when_etcd_does_not_answer_soon() -> None:
    assert waits_until(CACHED, "", BEGUN, None) == BEGUN + CACHE_SECONDS
    assert waits_until(CACHED, "", BEGUN, LOST) == OVER


@pytest.mark.parametrize(
    "known", [view(Source.REGISTRY), view(Source.STALE, enable=True), ResolverState(is_denied=True)]
)
def test_an_answer_ends_the_wait(known: ResolverState) -> None:
    assert waits_until(known, "", BEGUN, None) == OVER
    assert waits_until(known, "", BEGUN, LOST) == OVER


def test_names_like_one_that_cannot_be_found_are_waited_for() -> None:
    looking = BEGUN + 5
    assert waits_until(view(Source.REGISTRY), "", BEGUN, None, looking) == looking + NAMES_SECONDS
    assert waits_until(view(Source.REGISTRY, enable=True), "", BEGUN, None, looking) == OVER, "it has come meanwhile"
    assert waits_until(ResolverState(is_denied=True), "", BEGUN, None, looking) == OVER


def test_what_goes_wrong_unforeseen_ends_the_wait() -> None:
    assert waits_until(UNKNOWN, "internal error", BEGUN, None) == OVER


def test_several_registries_are_waited_for_while_one_may_yet_say_whom_to_call() -> None:
    disabled, enabled = view(Source.REGISTRY, enable=False), view(Source.REGISTRY, enable=True)
    assert is_waiting([disabled, UNKNOWN], [False, True])
    assert merge_views("x", [disabled, UNKNOWN], [True, False]).snapshot is None
    assert not is_waiting([enabled, UNKNOWN], [False, True])
    assert not is_waiting([disabled, UNKNOWN], [False, False])
    assert is_waiting([CACHED, UNKNOWN], [True, True])


def test_who_waits_is_told_what_is_wrong_meanwhile() -> None:
    reason = explain("x", Facts(UNKNOWN, "/x/", error="refused.", is_waiting=True))
    assert reason == (Cause.PENDING, "etcd has not answered yet about /x/: refused; retrying")
    advised = explain("x", Facts(UNKNOWN, "/x/", error="refused.", remedy="Look there.", is_waiting=True))
    assert advised.text == "etcd has not answered yet about /x/: refused; retrying. Look there"
    assert explain("x", Facts(UNKNOWN, "/x/", error="refused.")).cause is Cause.UNREACHABLE
    assert explain("x", Facts(UNKNOWN, "/x/")) == (Cause.PENDING, "etcd has not answered yet about /x/")
    named = Facts(view(Source.REGISTRY, enable=True), awaited=("a:1", "b:1"))
    assert explain("x", named) == (Cause.PENDING, "these host names have not been resolved yet: a:1, b:1")
