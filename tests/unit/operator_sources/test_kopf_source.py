"""What Kopf delivers: Pods are read as they are from protobuf, and what is known is dropped before it is read."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import EventHandlers
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.freshness import Stream
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.sources.json_pods import read_pod
from grpc_etcd_operator.sources.kopf_source import Kind, make_note
from grpc_etcd_operator.sources.source import Receiver
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_pod


def as_json(message: Any) -> Any:
    """Give a message as the API server writes it in JSON: times are texts."""
    if isinstance(message, dict):
        if message.keys() == {"seconds"}:
            return datetime.fromtimestamp(int(message["seconds"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {name: as_json(value) for name, value in message.items()}
    return [as_json(each) for each in message] if isinstance(message, list) else message


FULL: dict[str, Any] = make_raw_pod(
    resourceVersion="7",
    annotations={"grpc-etcd.dev/weight": "7"},
    deletionTimestamp={"seconds": 1_767_225_700},
    deletionGracePeriodSeconds=30,
)
FULL["spec"]["readinessGates"] = [{"conditionType": "grpc-etcd.dev/registered"}]
FULL["spec"]["initContainers"] = [{"restartPolicy": "Always", "ports": [{"containerPort": 1, "protocol": "UDP"}]}]


@pytest.mark.parametrize(
    "raw", [FULL, make_raw_pod(), {"metadata": {"uid": "bare"}}, {"metadata": {"uid": "empty"}, "spec": {}}]
)
def test_a_pod_is_the_same_whichever_way_it_came(raw: dict[str, Any]) -> None:
    more = {
        **as_json(raw),
        "kind": "Pod",
        "metadata": {**as_json(raw)["metadata"], "managedFields": [{"manager": "x"}]},
    }
    assert read_pod(more) == json_format.ParseDict(raw, message_class("Pod")())


def test_what_is_null_is_not_set() -> None:
    read = read_pod({"metadata": {"uid": "1", "deletionTimestamp": None}, "spec": None})
    assert not read.metadata.HasField("deletionTimestamp")


@pytest.mark.parametrize("raw", [{}, {"metadata": {}}, {"metadata": {"name": "x", "uid": ""}}])
def test_what_has_no_uid_is_no_pod(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no UID"):
        read_pod(raw)


class Watched:
    """A reconciler that is told by Kopf; `read` counts the Pods that were read."""

    def __init__(self) -> None:
        self.reconciler = EventHandlers(ClusterCache(["default"]), {}, Timings(CollectorRegistry()))
        self.read: list[str] = []
        has_pod = self.reconciler.has_pod
        how = Kind(
            names=("", "v1", "pods"),
            parse=self.parse,
            is_known=lambda kind, uid, version: kind != "DELETED" and has_pod(uid, version),
        )
        self.stream = Stream(resource="pods", namespace="", attempted_at=0.0, seen_at=0.0)
        self.note = make_note(how, self.stream, Receiver(self.reconciler.note_pod, lambda _, __: None))

    def parse(self, raw: Mapping[str, Any]) -> PodMessage:
        self.read.append(raw["metadata"]["resourceVersion"])
        return read_pod(raw)

    @property
    def pods(self) -> dict[str, str]:
        return {uid: pod.resource_version for uid, pod in self.reconciler.cluster_cache.pods.items()}


def pod(version: str, uid: str = "1", *, ready: bool = True) -> dict[str, Any]:
    read: dict[str, Any] = as_json(make_raw_pod(uid, ready=ready, resourceVersion=version))
    return read


def test_what_is_known_in_the_same_version_is_dropped_unread() -> None:
    watched = Watched()
    watched.reconciler.note_pod(None, read_pod(pod("5")))  # by the list before
    for kind in (None, "ADDED", "MODIFIED"):
        watched.note(kind, pod("5"))
    assert watched.read == []
    watched.note("MODIFIED", pod("6", ready=False))
    watched.note("ADDED", pod("5", "2"))
    assert (watched.read, watched.pods) == (["6", "5"], {"1": "6", "2": "5"})


def test_a_pod_of_an_older_version_may_be_of_a_restored_backup() -> None:
    watched = Watched()
    watched.note(None, pod("9"))
    watched.note(None, pod("5", ready=False))
    assert watched.pods == {"1": "5"}


def test_a_deletion_is_never_dropped_and_a_list_brings_back_who_was_gone() -> None:
    watched = Watched()
    watched.note("ADDED", pod("5"))
    watched.note("DELETED", pod("5"))
    assert watched.pods == {}
    watched.note("MODIFIED", pod("5"))  # late
    assert watched.pods == {}
    watched.note(None, pod("5"))
    assert watched.pods == {"1": "5"}


def test_a_pod_that_is_out_of_scope_is_not_known_when_it_is_listed_again() -> None:
    watched = Watched()
    watched.reconciler.note_out_of_scope(read_pod(pod("5")))
    watched.note(None, pod("5"))
    assert not watched.reconciler.cluster_cache.pods["1"].outside


def test_what_a_watch_reports_that_shall_begin_with_a_list_is_dropped() -> None:
    watched = Watched()
    watched.note(None, pod("5"))
    watched.stream.is_lost = True
    for kind in ("MODIFIED", "DELETED"):
        watched.note(kind, pod("6", ready=False))
    assert watched.pods == {"1": "5"}
    watched.note(None, pod("7"))
    assert watched.pods == {"1": "7"}
