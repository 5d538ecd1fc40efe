"""What the API server answers in protobuf: pages of lists (Pods, or any object's metadata), refusals, watch events.

Source of the frames around events: k8s.io/apimachinery, pkg/util/framer (a length in four bytes, then the message).
"""

from typing import Any, Generic, NamedTuple, TypeVar

from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.kube.messages import MAGIC, read, read_object

T = TypeVar("T")
PROTOBUF = "application/vnd.kubernetes.protobuf"
METADATA = f"{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_LENGTH_BYTES = 4
_LONGEST_FRAME = 1 << 26  # far more than etcd takes for an object; a proxy's page would be read as a length as well


class Page(NamedTuple, Generic[T]):
    """A page of a list, what to ask for the next one with (empty: there is none), and the version of the whole list."""

    items: list[T]
    token: str
    version: str = ""


class Event(NamedTuple):
    """What a watch reports.

    ADDED, MODIFIED, DELETED or BOOKMARK, the Pod (a message), and the version to go on from.
    """

    kind: str
    pod: PodMessage
    version: str


class Refusal(NamedTuple):
    """An error that a watch reports: HTTP's code, and the API server's words."""

    status: int
    message: str


def read_pod(body: bytes) -> PodMessage:
    """Read a Pod; ValueError says that it is none."""
    pod: PodMessage = read_object("Pod", body)
    if not pod.metadata.uid:
        raise ValueError("not a Pod: it has no UID")
    return pod


def read_pods(body: bytes) -> Page[PodMessage]:
    """Read a page of Pods (messages); ValueError says that it is none."""
    page = read_object("PodList", body)
    if not page.metadata.resourceVersion:
        raise ValueError("not a list of Pods: it has no resourceVersion")
    return Page(list(page.items), page.metadata.token, page.metadata.resourceVersion)


def split_frames(received: bytes) -> tuple[list[bytes], bytes]:
    """Split what has been received into whole frames and the rest; ValueError says that these are not frames."""
    frames, start = [], 0
    while len(received) - start >= _LENGTH_BYTES:
        begin = start + _LENGTH_BYTES
        length = int.from_bytes(received[start:begin], "big")
        if length > _LONGEST_FRAME:
            raise ValueError(f"not a watch event: {received[start : start + 40]!r}")
        if len(received) < begin + length:
            break
        start = begin + length
        frames.append(received[begin:start])
    return frames, received[start:]


def read_event(frame: bytes) -> Event | Refusal:
    """Read what a watch reports; ValueError says that it is nothing that a watch reports."""
    event = read("WatchEvent", frame)
    if event.type == "ERROR":
        status = read_object("Status", event.object.raw)
        return Refusal(status.code, status.message or status.reason or "refused")
    pod = read_object("Pod", event.object.raw)
    if not event.type or not pod.metadata.resourceVersion:
        raise ValueError("not a watch event: it has no type or no resourceVersion")
    return Event(event.type, pod, pod.metadata.resourceVersion)


def read_metadata(body: bytes) -> Page[ObjectRef]:
    """Read a page of PartialObjectMetadata; ValueError says that it is none."""
    page = read_object("PartialObjectMetadataList", body)
    return Page([_seen(item.metadata) for item in page.items], page.metadata.token, page.metadata.resourceVersion)


def read_refusal(body: bytes) -> str | None:
    """Read the message of a Status, which is what the API server refuses with; None if it is not in protobuf."""
    return str(read_object("Status", body).message) if body.startswith(MAGIC) else None


def _seen(metadata: Any) -> ObjectRef:
    return ObjectRef(metadata.uid, metadata.namespace, metadata.name, metadata.resourceVersion)
