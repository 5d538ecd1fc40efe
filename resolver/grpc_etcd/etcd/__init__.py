"""The only place that knows etcd's RPCs: a client of its v3 API for threads (`Etcd`) and for asyncio (`aio.Etcd`).

The core (requests, replies, the list-watch loop, renewals, errors) does no I/O; `blocking` and `aio` are thin drivers.
Nothing is connected, read or compiled at import.
"""

from grpc_etcd.etcd import compare, ops
from grpc_etcd.etcd.blocking.client import Etcd
from grpc_etcd.etcd.blocking.hub import WatchHub
from grpc_etcd.etcd.blocking.streams import KeepAlive, ListWatch
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.endpoints import Password, Tls
from grpc_etcd.etcd.errors import (
    AuthFailed,
    AuthNotEnabled,
    Closed,
    Compacted,
    DeadlineExceeded,
    DuplicateKey,
    EtcdError,
    FutureRevision,
    HistoryChanged,
    InvalidRequest,
    LeaseExists,
    LeaseNotFound,
    NoLeader,
    NoSpace,
    NotServing,
    PermissionDenied,
    RequestTooLarge,
    TokenRefused,
    TooManyOperations,
    TooManyRequests,
    Unavailable,
    UnreadableFile,
)
from grpc_etcd.etcd.hub.subscription import Subscription
from grpc_etcd.etcd.model import (
    Changed,
    Deleted,
    Event,
    LeaseId,
    Listed,
    Listing,
    Lost,
    News,
    Progress,
    Put,
    Record,
    Revision,
    ServerStatus,
    State,
    TimeToLive,
    TransactionResult,
)
from grpc_etcd.etcd.ops import Op

__all__ = [
    "AuthFailed",
    "AuthNotEnabled",
    "Changed",
    "Closed",
    "Compacted",
    "Compare",
    "DeadlineExceeded",
    "Deleted",
    "DuplicateKey",
    "Etcd",
    "EtcdError",
    "Event",
    "FutureRevision",
    "HistoryChanged",
    "InvalidRequest",
    "KeepAlive",
    "LeaseExists",
    "LeaseId",
    "LeaseNotFound",
    "ListWatch",
    "Listed",
    "Listing",
    "Lost",
    "News",
    "NoLeader",
    "NoSpace",
    "NotServing",
    "Op",
    "Password",
    "PermissionDenied",
    "Progress",
    "Put",
    "Record",
    "RequestTooLarge",
    "Revision",
    "ServerStatus",
    "State",
    "Subscription",
    "TimeToLive",
    "Tls",
    "TokenRefused",
    "TooManyOperations",
    "TooManyRequests",
    "TransactionResult",
    "Unavailable",
    "UnreadableFile",
    "WatchHub",
    "compare",
    "ops",
]
