"""What is said of a service that has no endpoint, or none that is certain: the whole table."""

from typing import Any

import pytest

from grpc_etcd.discovery.reasons import Cause, Facts, describe_shortfall, explain, nearest
from grpc_etcd.discovery.state import ResolverState, Source
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.snapshot import Snapshot

WHERE = "/jupiter/greeter/ in etcd at etcd:2379"


def view(*endpoints: Endpoint, source: Source = Source.REGISTRY, **fields: Any) -> ResolverState:
    rejected = fields.pop("rejected", {})
    return ResolverState(source, Snapshot("greeter", 7, endpoints, rejected), **fields)


def endpoint(number: int = 1, **attributes: Any) -> Endpoint:
    return Endpoint(name="greeter", address=f"10.0.0.{number}:1", **attributes)


DENIED = ((b"/jupiter/greeter/", "permission denied. Grant the range"),)
CASES = [
    (Facts(view(endpoint())), Cause.NONE, []),
    (Facts(ResolverState(), WHERE), Cause.PENDING, ["not answered", WHERE]),
    (Facts(view(), WHERE), Cause.MISSING, [WHERE, "grpc-etcd check greeter"]),
    (Facts(view(), WHERE, names=("greeters", "users")), Cause.MISSING, ["did you mean greeters?"]),
    (Facts(view(), WHERE, names=("greeter", "greeters")), Cause.MISSING, ["did you mean greeters?"]),
    (Facts(view(), WHERE, names=("greeter",)), Cause.MISSING, ["check the name, the prefix and the layout"]),
    (
        Facts(view(rejected={b"/jupiter/greeter/x": "no JSON", b"/jupiter/greeter/y": "no URL"})),
        Cause.BROKEN,
        ["all 2 records", "/jupiter/greeter/x: no JSON"],
    ),
    (Facts(view(endpoint(enable=False), endpoint(2, healthy=False))), Cause.DISABLED, ["all 2", "enable one"]),
    (
        Facts(view(endpoint()), unusable={"10.0.0.1:1": "the host name 'x' cannot be resolved"}),
        Cause.UNUSABLE,
        ["10.0.0.1:1: the host name 'x' cannot be resolved"],
    ),
    (Facts(view(endpoint(), endpoint(2, enable=False)), unusable={"10.0.0.2:1": "no such host"}), Cause.NONE, []),
    (Facts(ResolverState(refused=DENIED, is_denied=True)),
     Cause.DENIED, ["/jupiter/greeter/", "permission denied", "Grant", "or correct the prefix (GRPC_ETCD_PREFIX)"]),
    (Facts(view(endpoint(), refused=DENIED)), Cause.DENIED, ["everything else is used"]),
    (
        Facts(ResolverState(), WHERE, "connection refused", "Check that etcd runs", since=3600.0),
        Cause.UNREACHABLE,
        ["cannot be watched since 01:00:00 UTC", "connection refused", "Check that etcd runs"],
    ),
    (
        Facts(view(endpoint()), WHERE, "connection refused", since=7200.0, last_seen_at=3600.0),
        Cause.UNREACHABLE,
        ["the last known endpoints of 01:00:00 UTC are used (1 endpoints)"],
    ),
    (Facts(ResolverState(), error="SSL_ERROR_SSL: certificate verify failed"), Cause.TLS, ["TLS", "server name"]),
    (Facts(ResolverState(), error="DNS resolution failed for etcd:2379"), Cause.UNKNOWN_HOST, ["host name"]),
    (Facts(ResolverState(), error="authentication failed, invalid password"), Cause.AUTHENTICATION, ["login"]),
    (
        Facts(view(endpoint(), source=Source.STALE, reason="nobody confirms it: the last known endpoints stay in use")),
        Cause.UNCONFIRMED,
        ["the last known endpoints stay in use"],
    ),
    (Facts(view(endpoint()), fault="internal error: KeyError: 'x'"), Cause.INTERNAL, ["KeyError", "retrying"]),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "cause", "words"), CASES, ids=lambda each: str(each)[:40])
def test_each_cause_is_named_with_what_to_do(facts: Facts, cause: Cause, words: list[str]) -> None:
    reason = explain("greeter", facts)
    assert reason.cause is cause
    assert bool(reason.text) is (cause is not Cause.NONE)
    for word in words:
        assert word in reason.text


def test_a_reason_does_not_change_while_nothing_does() -> None:
    facts = Facts(ResolverState(), WHERE, "connection refused", since=3600.0)
    assert explain("greeter", facts) == explain("greeter", facts)


def test_names_are_found_where_the_layout_has_them() -> None:
    keys = [b"/jupiter/greeters/providers/x", b"/jupiter/users/providers/y", b"/else/where/z", b"/jupiter/stray"]
    assert nearest("greeter", keys, [b"/jupiter/greeter/"]) == ("greeters", "users")
    assert nearest("greeter", keys, [b"/no/such/layout"]) == ()


def test_a_shortfall_names_what_does_not_count_and_why_the_worst_first() -> None:
    endpoints = (endpoint(1), endpoint(2, enable=False), endpoint(3, healthy=False), endpoint(4, weight=0), endpoint(5))
    facts = Facts(view(*endpoints), unusable={"10.0.0.5:1": "no such host"})
    assert describe_shortfall(facts, 3, 1) == (
        "calls can go to 1 of at least 3 endpoints that were waited for; not counted: 10.0.0.5:1 (no such host), "
        "10.0.0.2:1 (disabled), 10.0.0.3:1 (not healthy), 1 more"
    )
    broken = Facts(view(endpoint(1, weight=0), rejected={b"/jupiter/greeter/x": "no JSON"}))
    assert describe_shortfall(broken, 2, 0) == (
        "calls can go to 0 of at least 2 endpoints that were waited for; not counted: /jupiter/greeter/x (no JSON), "
        "10.0.0.1:1 (weight 0)"
    )


def test_a_shortfall_counts_what_channels_are_not_told_yet_and_needs_no_snapshot() -> None:
    late = describe_shortfall(Facts(view(endpoint(), endpoint(2))), 2, 1)
    assert late == (
        "calls can go to 1 of at least 2 endpoints that were waited for (1 more not passed on to channels yet)"
    )
    assert "0 of at least 2" in describe_shortfall(Facts(ResolverState()), 2, 0)


def test_a_reason_is_short_however_long_a_key_is() -> None:
    reason = explain("greeter", Facts(view(rejected={b"/jupiter/greeter/" + b"x" * 1_000_000: "no URL"})))
    assert reason.text.endswith("no URL")
    assert len(reason.text) < 1000
