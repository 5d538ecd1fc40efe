"""Posts Kubernetes Events about GrpcServices and Pods, whose names all replicas make alike: each is there once."""

import hashlib
import logging
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp

from grpc_etcd.registry.escaping import escape
from grpc_etcd_operator.core.pods import Pod
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import Sparing, Subject
from grpc_etcd_operator.kube.client import GROUP, TARGETS, VERSION, ApiError, Client, kind_of

log = logging.getLogger(__name__)
CONTROLLER = f"{GROUP}/operator"
PODS = "pods"
KINDS = {PODS: ("v1", "Pod"), TARGETS: ("v1", "Service")}  # by what URLs have; all else is reported on GrpcServices
# No permission to post any, no namespace any more, or something wrong with it.
NEVER_TAKEN = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)
SAME_EVENT_SECONDS = 600  # two Events of one kind within such a stretch of time are one. Arbitrary
NOTE_BYTES = 1024  # what the API server takes of an Event's note
INSTANCE_CHARACTERS = 128  # and of its reportingInstance


class News(NamedTuple):
    """What an Event says of an object, and when it came up (Unix seconds). Those of one kind and `since` are one.

    Where `since` is empty, those of one stretch of time.
    """

    about: GrpcService | Pod | Subject
    reason: str
    note: str
    at: float
    is_warning: bool = True
    since: str = ""

    @property
    def is_old(self) -> bool:
        """Return whether it is too old to be reported: by a replica that leads again, for example."""
        return time.time() - self.at > SAME_EVENT_SECONDS


class EventPoster:
    """Posts Events as `instance`, the identity of this replica."""

    def __init__(self, client: Client, instance: str = "") -> None:
        self._client, self._instance = client, instance[:INSTANCE_CHARACTERS] or CONTROLLER
        self._sparing = Sparing(log)

    async def post(self, news: News) -> bool:
        """Post an Event; return whether there is no use in posting it again. A failure is only logged."""
        try:
            await self._client.post_event(news.about.namespace, make_event(news, self._instance))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, ApiError) and error.status == HTTPStatus.CONFLICT:
                return True  # it has been reported already
            words, fields = "Event not posted", {"error": str(error)}
            self._sparing.write(kind_of(news.about.namespace, error), words, "event_refused", fields)
            return isinstance(error, ApiError) and error.status in NEVER_TAKEN
        return True


def make_event(news: News, instance: str) -> dict[str, Any]:
    """Write an Event as the API takes it (events.k8s.io/v1)."""
    about, now = news.about, datetime.fromtimestamp(time.time(), UTC)
    resource = about.resource if isinstance(about, Subject) else PODS if isinstance(about, Pod) else ""
    api_version, kind = KINDS.get(resource, (f"{GROUP}/{VERSION}", "GrpcService"))
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": _name_event(news), "namespace": about.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning" if news.is_warning else "Normal",
        "reason": news.reason,
        "action": "OpenReadinessGate" if isinstance(about, Pod) else "Reconcile",
        "note": shorten(news.note),
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "regarding": {
            "apiVersion": api_version,
            "kind": kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
    }


def _name_event(news: News) -> str:
    """Name an Event by what it says of which generation, so that it is not posted twice."""
    about = news.about
    generation = about.generation if isinstance(about, GrpcService) else 0
    since = news.since or str(int(news.at) // SAME_EVENT_SECONDS)
    text = f"{about.uid} {news.reason} {generation} {since}"
    return f"{about.name[:200].rstrip('-.')}.{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def shorten(note: str) -> str:
    """Cut a message off where the API server would refuse it; names in it may have characters of several bytes."""
    return escape(note).encode(errors="replace")[:NOTE_BYTES].decode(errors="ignore")
