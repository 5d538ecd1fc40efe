"""Everything that etcd or the way to it can refuse, as one tree with an answer to "what now".

    EtcdError
    ├── Unavailable            no member answers
    │   └── NoLeader           the member that answers has no quorum
    ├── DeadlineExceeded       no answer in time: a write may or may not have happened
    ├── PermissionDenied       the user may not do this
    ├── AuthFailed             user or password is wrong or missing
    │   ├── TokenRefused       the token has run out (a new log-in mends it)
    │   └── AuthNotEnabled     etcd asks nobody for a password
    ├── LeaseNotFound          expired or revoked
    ├── LeaseExists            the chosen id is taken
    ├── Compacted              the revision asked for is no longer kept
    ├── FutureRevision         the revision asked for does not exist yet
    ├── HistoryChanged         this is not the history that was followed: etcd was restored or replaced
    ├── InvalidRequest         etcd does not take the request
    │   ├── RequestTooLarge    more bytes than the server's --max-request-bytes
    │   ├── TooManyOperations  more operations than the server's --max-txn-ops
    │   └── DuplicateKey       one key put twice in a transaction
    ├── NoSpace                the database has reached its quota
    ├── TooManyRequests        the server is overloaded
    └── Closed                 the client has been closed

Each keeps the gRPC code and etcd's own words; `remedy` tells an admin what to do next.
"""
# ruff: noqa: N818  the names are the conditions that etcd reports; `errors.` or EtcdError says what they are

from typing import ClassVar


class EtcdError(Exception):
    """Anything that went wrong with etcd."""

    remedy: ClassVar[str] = "See etcd's log for the reason."

    def __init__(self, details: str, code: str = "") -> None:
        super().__init__(details)
        self.details = details
        self.code = code

    def __str__(self) -> str:
        return f"{self.details or type(self).__name__} ({self.code})" if self.code else self.details


class Unavailable(EtcdError):
    """No member of the cluster answers."""

    remedy = "Check that etcd runs, that the endpoints are right, and that network policies and TLS let this client in."


class NoLeader(Unavailable):
    """The member that answers has no leader: the cluster has lost its quorum."""

    remedy = "Bring back the majority of etcd's members; until then it can neither be written nor read safely."


class DeadlineExceeded(EtcdError):
    """No answer in time. A write may or may not have been carried out."""

    remedy = (
        "Check etcd's load and disk latency (etcd_disk_wal_fsync_duration_seconds) and the network; then read back."
    )


class PermissionDenied(EtcdError):
    """The user may not do this."""

    remedy = "Grant the user's role the range: etcdctl role grant-permission ROLE --prefix=true readwrite PREFIX."


class AuthFailed(EtcdError):
    """User or password is wrong or missing."""

    remedy = "Give the right user and password; etcdctl user list shows who exists."


class TokenRefused(AuthFailed):
    """The token is no longer valid; a new log-in mends it."""

    remedy = "Log in again; when that repeats, compare the members' --auth-token settings and clocks."


class AuthNotEnabled(AuthFailed):
    """This etcd runs without authentication."""

    remedy = "Enable authentication in etcd (etcdctl auth enable), or configure no user."


class LeaseNotFound(EtcdError):
    """The lease has expired or was revoked; its keys are gone."""

    remedy = "Grant a new lease and put the keys again."


class LeaseExists(EtcdError):
    """A lease with the chosen id exists already."""

    remedy = "Adopt the lease, or choose another id."


class Compacted(EtcdError):
    """The revision asked for is no longer kept."""

    remedy = "List again and go on from there."

    def __init__(self, details: str, code: str = "", revision: int = 0) -> None:
        super().__init__(details, code)
        self.revision = revision


class FutureRevision(EtcdError):
    """The revision asked for does not exist yet."""

    remedy = "List again: this etcd has another history than the one that was followed."


class HistoryChanged(EtcdError):
    """This etcd does not hold the history that was followed: it was restored from a snapshot or replaced."""

    remedy = "List again. Should nobody have restored it, check that all endpoints belong to one cluster."


class InvalidRequest(EtcdError):
    """etcd does not take the request."""

    remedy = "The request itself must change; trying again does not help."


class RequestTooLarge(InvalidRequest):
    """The request has more bytes than the server takes."""

    remedy = "Split the request, or raise the server's --max-request-bytes (1.5 MiB)."


class TooManyOperations(InvalidRequest):
    """The transaction has more operations than the server takes."""

    remedy = "Split the transaction, or raise the server's --max-txn-ops (128)."


class DuplicateKey(InvalidRequest):
    """One key is put twice in one transaction."""

    remedy = "Put each key once."


class NoSpace(EtcdError):
    """The database has reached its quota and takes no writes."""

    remedy = "Compact and defragment, raise --quota-backend-bytes, then etcdctl alarm disarm."


class TooManyRequests(EtcdError):
    """The server is overloaded."""

    remedy = "Write more slowly; check etcd's disk latency."


class Closed(EtcdError):
    """The client has been closed."""

    remedy = "Open a new client."


# etcd's own words, from its api/v3rpc/rpctypes/error.go; the first that fits wins.
WORDS: tuple[tuple[str, type[EtcdError]], ...] = (
    ("no leader", NoLeader),
    ("permission denied", PermissionDenied),
    ("invalid auth token", TokenRefused),
    ("revision of auth store is old", TokenRefused),
    ("user name is empty", TokenRefused),
    ("authentication failed", AuthFailed),
    ("user name not found", AuthFailed),
    ("authentication is not enabled", AuthNotEnabled),
    ("requested lease not found", LeaseNotFound),
    ("lease already exists", LeaseExists),
    ("has been compacted", Compacted),
    ("is a future revision", FutureRevision),
    ("request is too large", RequestTooLarge),
    ("grpc: received message larger than max", RequestTooLarge),  # of a Go server; below that, etcd says it itself
    ("too many operations", TooManyOperations),
    ("duplicate key", DuplicateKey),
    ("database space exceeded", NoSpace),
    ("too many requests", TooManyRequests),
)

CODES: dict[str, type[EtcdError]] = {
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": TokenRefused,
    "PERMISSION_DENIED": PermissionDenied,
    "INVALID_ARGUMENT": InvalidRequest,
    "CANCELLED": Unavailable,
}


def make_error(code: str, details: str) -> EtcdError:
    """Return the error of the tree for a gRPC code and etcd's words."""
    for words, kind in WORDS:
        if words in details:
            return kind(details, code)
    return CODES.get(code, EtcdError)(details, code)
