"""What may not be read is told as that, and neither as an API server that is silent nor as Pods that are absent."""

import time
from types import SimpleNamespace

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES
from grpc_etcd_operator.kube.freshness import BLIND_SECONDS, LOST_SECONDS, WATCH, Freshness, Stream
from testbed.conditions import wait_until

GAP_SECONDS = 30.0
REFUSED = "pods cannot be read (403 Forbidden)"


def make(*namespaces: str) -> Freshness:
    watched = [(what, each) for what in (PODS, SERVICES) for each in namespaces]
    return Freshness(lambda _, __: None, watched, gap_seconds=GAP_SECONDS)


def note_event(stream: Stream, *, seconds_ago: float = 0.0) -> Stream:
    stream.last_event_at = stream.seen_at = time.monotonic() - seconds_ago
    return stream


def refuse(stream: Stream, *, seconds_ago: float = 0.0) -> Stream:
    stream.note_fault(REFUSED)
    stream.fault_at -= seconds_ago
    return stream


def test_a_watch_that_may_not_be_read_makes_no_other_look_silent() -> None:
    freshness = make("shop", "till")
    note_event(freshness.stream(PODS, "shop"), seconds_ago=5)
    refuse(note_event(freshness.stream(PODS, "till"), seconds_ago=600))
    assert 5 <= freshness.event_age(PODS) < 60
    refuse(freshness.stream(PODS, "shop"))
    assert freshness.event_age(PODS) >= 600, "where none may be read, the quietest of all"


def test_who_is_unreadable_is_told_for_each_resource() -> None:
    freshness = make("shop", "till")
    refuse(freshness.stream(PODS, "till"))
    assert freshness.unreadable() == freshness.unreadable(PODS) == {"till": REFUSED}
    assert freshness.unreadable(SERVICES) == {}


def test_a_refusal_counts_once_it_lasts_or_where_nothing_was_ever_seen() -> None:
    freshness = make("shop")
    stream = freshness.stream(PODS, "shop")
    assert freshness.blindness(PODS, "shop") == "", "not listed yet"
    refuse(stream)
    assert freshness.blindness(PODS, "shop") == REFUSED
    assert freshness.blindness(PODS, "elsewhere") is None, "nobody is to see it"
    stream.note_seen()
    note_event(stream)
    assert freshness.blindness(PODS, "shop") is None
    refuse(note_event(stream, seconds_ago=GAP_SECONDS + 1))
    assert freshness.blindness(PODS, "shop") == "", "an API server that has just started refuses what it allows"
    stream.fault_at -= GAP_SECONDS + 1
    assert freshness.blindness(PODS, "shop") == REFUSED


def test_a_role_that_lets_list_and_not_watch_lets_nobody_see() -> None:
    """Probes and sweeps are lists, and come again and again."""
    freshness = make("shop")
    stream = note_event(freshness.stream(PODS, "shop"), seconds_ago=GAP_SECONDS + 1)
    stream.note_fault(REFUSED, WATCH)
    stream.fault_at -= GAP_SECONDS + 1
    stream.note_seen()
    assert freshness.blindness(PODS, "shop") == REFUSED
    stream.note_seen(WATCH)
    assert freshness.unreadable() == {}


def test_a_watch_of_all_namespaces_speaks_for_each_and_a_list_that_is_read_is_not_seen_yet() -> None:
    freshness = make("")
    stream = note_event(freshness.stream(PODS, ""))
    assert freshness.blindness(PODS, "shop") is None
    stream.is_listed = True
    assert freshness.blindness(PODS, "shop") == ""


def make_open(freshness: Freshness, resource: str) -> tuple[Stream, list[str]]:
    """Make a watch that is open, and a list of its ends."""
    stream, ends = freshness.stream(resource, "shop"), list[str]()
    stream.response, stream.relist = Response(), lambda: ends.append(resource)  # type: ignore[assignment]  # what is read of one
    return stream, ends


class Response:
    """As much of a response as is looked at."""

    closed = False
    content = SimpleNamespace(total_bytes=0)


def test_a_watch_that_was_not_seen_for_long_ends_and_is_seen_again_only_after_a_list() -> None:
    freshness = make("shop")
    pods, ends = make_open(freshness, PODS)
    services, other_ends = make_open(freshness, SERVICES)
    note_event(services)
    note_event(pods, seconds_ago=LOST_SECONDS + 1)
    freshness.lose_unseen()
    freshness.lose_unseen()
    assert (ends, other_ends) == ([PODS], []), "once, and no other"
    pods.note_seen()  # a probe's answer
    assert freshness.blind_seconds() > BLIND_SECONDS, "that the API server answers says nothing of what was missed"
    pods.find()
    assert freshness.blind_seconds() == 0


def test_a_watch_that_was_seen_a_moment_ago_goes_on() -> None:
    freshness = make("shop")
    pods, ends = make_open(freshness, PODS)
    note_event(pods, seconds_ago=LOST_SECONDS - 1)
    freshness.lose_unseen()
    assert not ends


def test_who_stood_still_for_long_begins_with_a_list_though_all_that_was_missed_has_just_come() -> None:
    freshness = make("shop")
    pods, ends = make_open(freshness, PODS)
    note_event(pods)
    freshness.lose_unseen(LOST_SECONDS + 1)
    assert (ends, freshness.is_behind()) == ([PODS], True)
    pods.find()
    assert freshness.is_behind(), "whoever delivers it may not have passed on the last of it"
    wait_until(lambda: not freshness.is_behind(), "it is noted")


def test_a_watch_that_reports_what_is_of_long_ago_begins_with_a_list() -> None:
    freshness = make("shop")
    pods, ends = make_open(freshness, PODS)
    now = time.monotonic()
    pods.marks.extend([(now - LOST_SECONDS - 2, 70), (now - LOST_SECONDS - 1, 80), (now - 1, 90)])
    pods.note_event("85")
    assert not ends, "what happened a second ago is not late"
    pods.marks.appendleft((now - LOST_SECONDS - 1, 86))
    pods.note_event("86")
    assert not ends, "it is what was there when that was asked"
    pods.marks.appendleft((now - LOST_SECONDS - 1, 88))
    pods.note_event("87")
    assert (ends, freshness.is_behind()) == ([PODS], True)


def test_a_list_that_is_being_read_goes_on_however_long_it_takes() -> None:
    freshness = make("shop")
    pods, ends = make_open(freshness, PODS)
    note_event(pods, seconds_ago=LOST_SECONDS + 1)
    pods.is_listed = True
    freshness.lose_unseen()
    assert not ends
