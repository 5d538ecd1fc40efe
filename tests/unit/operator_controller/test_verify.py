"""What a registry lacks, as `helm test` asks it, from what its keys say."""

import json

import pytest

from grpc_etcd_operator.controller.verify import find_lack
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Scope, write_leader

HERE, ELSEWHERE = Fingerprint("uid-1"), Fingerprint("uid-2")
MINE = Candidate("verify", Scope(("shop",)), installation="ops/one", fingerprint=HERE)
LEADER = write_leader(Candidate("pod", Scope(("shop",)), "n1", "ops/one", HERE))


@pytest.mark.parametrize(
    ("leader", "is_synced", "sentence"),
    [
        (None, False, "no replica leads for cluster id c1"),
        (None, True, "no replica leads for cluster id c1"),  # a copy of another etcd's keys
        (LEADER, False, "is not synced"),
        (
            write_leader(Candidate("pod", Scope(("pay",)), "n1", "ops/two", HERE)),
            True,
            "another installation is leader",
        ),
        (write_leader(Candidate("pod", Scope(("shop",)), "n1", "ops/one", ELSEWHERE)), True, "another Kubernetes"),
    ],
)
def test_what_is_lacking_is_named(leader: bytes | None, *, is_synced: bool, sentence: str) -> None:
    lack = find_lack("c1", leader, MINE, is_synced=is_synced)
    assert lack is not None
    assert sentence in lack


@pytest.mark.parametrize(
    "leader",
    [
        LEADER,
        write_leader(Candidate("pod", Scope(("pay",)), "n1", "ops/one", HERE)),  # an upgrade changes the scope
        json.dumps({"identity": "of an older version", "namespaces": ["shop"], "selector": ""}).encode(),
    ],
)
def test_a_registry_that_is_led_and_synced_lacks_nothing(leader: bytes) -> None:
    assert find_lack("c1", leader, MINE, is_synced=True) is None
