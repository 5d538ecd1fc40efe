"""What the readers of a prefix bear, whichever layouts come to it."""

from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import Pace
from grpc_etcd_operator.registry.prefixes import AT_EASE, Streams

PREFIX = b"/micro/registry/greeter/"


def test_readers_of_each_layout_that_comes_to_a_prefix_are_spared() -> None:
    streams = Streams(lambda _: True)
    assert streams.learn(make_layout("kratos", "/micro/registry"), "greeter") == PREFIX
    assert streams.pace(PREFIX) == AT_EASE
    assert streams.touch(PREFIX, "c1") is None
    assert streams.learn(make_layout("jupiter", "micro/registry"), "greeter") == PREFIX
    assert streams.pace(PREFIX) == make_layout("jupiter").pace
    assert streams.touch(PREFIX, "c1") == (PREFIX + b"settled/c1", b"settled")
    assert streams.learn(make_layout("go-micro"), "greeter") == PREFIX
    assert streams.pace(PREFIX) == Pace(keys_per_transaction=1, keys_per_second=500, settling_touch=True)
    streams.forget(PREFIX)
    assert (streams.find(PREFIX + b"x"), streams.pace(PREFIX), streams.touch(PREFIX, "c1")) == (None, AT_EASE, None)


def test_a_prefix_that_no_reader_paces_is_found_all_the_same() -> None:
    streams = Streams(lambda _: True)
    streams.learn_plain(b"/prometheus/job/greeter/")
    key = b"/prometheus/job/greeter/pod-1"
    assert streams.find(key) == b"/prometheus/job/greeter/"
    assert (streams.pace(b"/prometheus/job/greeter/"), streams.touch(b"/prometheus/job/greeter/", "c1")) == (
        AT_EASE,
        None,
    )
