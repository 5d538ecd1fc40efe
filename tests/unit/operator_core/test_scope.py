"""What a leader is to a replica: itself, its predecessor, a peer, or somebody beside whom it must not write."""

import json
from dataclasses import replace

import pytest

from grpc_etcd_operator.core.scope import (
    Candidate,
    Fingerprint,
    Relation,
    Scope,
    make_identity,
    read_fingerprint,
    read_leader,
    read_registry,
    relation,
    write_holder,
    write_leader,
)

HERE, ELSEWHERE = Fingerprint("uid-1", frozenset({"ca-1"})), Fingerprint("uid-2", frozenset({"ca-2"}))
CLONE = Fingerprint("uid-1", frozenset({"ca-2"}))
ROTATING = Fingerprint("uid-1", frozenset({"ca-1", "ca-2"}))
SHOP, PAY = Scope(("shop",)), Scope(("pay",))
MINE = Candidate("pod-1", SHOP, "n1", "ops/one", HERE)


@pytest.mark.parametrize(
    ("leader", "expected"),
    [
        (MINE, Relation.ITSELF),
        (replace(MINE, fingerprint=CLONE), Relation.ITSELF),
        (replace(MINE, fingerprint=CLONE, nonce="n2"), Relation.OTHER_CLUSTER),
        (Candidate("pod-1", SHOP, "n1", "ops/one", HERE, "second"), Relation.TWIN),
        (Candidate("pod-1", SHOP, "n2", "ops/one", HERE, "second"), Relation.PREDECESSOR),
        (Candidate("pod-2", SHOP, "n2", "ops/one", HERE, "second"), Relation.PEER),
        (Candidate("pod-1", SHOP, "n2", "ops/one", HERE), Relation.PREDECESSOR),
        (Candidate("pod-2", SHOP, "n2", "ops/one", HERE), Relation.PEER),
        (Candidate("pod-2", PAY, "n2", "ops/one", HERE), Relation.PEER),
        (Candidate("pod-2", PAY, "n2", "ops/two", HERE), Relation.OTHER_INSTALLATION),
        (Candidate("pod-2", PAY, "n2", "", HERE), Relation.OTHER_INSTALLATION),
        (Candidate("pod-2", SHOP, "n2", "ops/two", HERE), Relation.PEER),
        (Candidate("pod-2", SHOP, "n2", "ops/one", ELSEWHERE), Relation.OTHER_CLUSTER),
        (Candidate("pod-2", SHOP, "n2", "ops/one", CLONE), Relation.OTHER_CLUSTER),
        (Candidate("pod-2", SHOP, "n2", "ops/one", ROTATING), Relation.PEER),
        (Candidate("pod-2", SHOP, "n2", "ops/one", Fingerprint()), Relation.PEER),
    ],
)
def test_what_a_leader_is_to_a_replica(leader: Candidate, expected: Relation) -> None:
    assert relation(MINE, write_leader(leader)) is expected


def test_replicas_that_share_a_nodes_network_are_told_apart() -> None:
    """In each of their containers the host's name is the node's, and the process id is 1."""
    first, second = (Candidate(make_identity("", "node-1", 1, nonce), SHOP, nonce) for nonce in ("n1", "n2"))
    assert relation(first, write_leader(second)) is Relation.PEER
    assert make_identity("pod-uid", "node-1", 1, "n1") == "pod-uid"


def test_what_older_versions_wrote_is_read() -> None:
    value = json.dumps({"identity": "a/1", "namespaces": ["shop"], "selector": ""}).encode()
    assert read_leader(value) == Candidate("a/1", SHOP)
    assert relation(MINE, value) is Relation.PEER


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"null", b'{"namespaces": 1}', b"synced"])
def test_what_is_no_leaders_value_says_nothing(value: bytes) -> None:
    assert read_leader(value) is None
    assert relation(MINE, value) is Relation.PEER
    assert not read_fingerprint(value).is_known
    assert not read_registry(value)


def test_a_fingerprint_is_read_as_it_was_written() -> None:
    value = write_holder(ROTATING, "main")
    assert (read_fingerprint(value), read_registry(value)) == (ROTATING, "main")


def test_scopes_are_apart_when_no_namespace_is_in_both() -> None:
    assert SHOP.is_apart_from(PAY)
    assert not SHOP.is_apart_from(SHOP)
    assert not SHOP.is_apart_from(Scope())
