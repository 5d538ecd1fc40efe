"""Everything that etcd or the way to it can refuse, as one tree with an answer to "what now".

    EtcdError
    ├── Unavailable            no member answers
    │   ├── NoLeader           the member that answers has no quorum
    │   ├── NotServing         what answers serves no client: a learner, a corrupt member, no etcd at all
    │   └── UnreadableFile     a file of the client's own (TLS, password) cannot be read, so nobody was asked
    ├── DeadlineExceeded       no answer in time: a write may or may not have happened
    ├── PermissionDenied       the user may not do this
    ├── AuthFailed             user or password is wrong or missing
    │   ├── TokenRefused       the token has expired (a new login fixes it)
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

Each keeps the gRPC code and etcd's own words; `remedy` says what to do next. Both can be called as well, as
those of a `grpc.RpcError` must be, so that one handler may serve both kinds.
"""
# ruff: noqa: N818  the names are the conditions that etcd reports; `errors.` or EtcdError says what they are

import importlib
from typing import Any

from grpc_etcd.registry.own import describe_grant


class Details(str):
    """What etcd said; `error.details()` gives the same, as with a grpc.RpcError."""

    __slots__ = ()

    def __call__(self) -> str:
        """Return the text."""
        return str(self)


class Code(str):
    """The name of gRPC's code, empty where no call was made; `error.code()` gives the code, as with a grpc.RpcError."""

    __slots__ = ()

    def __call__(self) -> Any:
        """Return the grpc.StatusCode."""
        codes = importlib.import_module("grpc").StatusCode  # this module itself does without gRPC
        return codes[self] if self in codes.__members__ else codes.UNKNOWN


class EtcdError(Exception):
    """An error of etcd, or of the connection to it."""

    remedy: str = "See etcd's log for the reason."

    def __init__(self, details: str, code: str = "") -> None:
        super().__init__(details)
        self.details = Details(details)
        self.code = Code(code)

    def __str__(self) -> str:
        return f"{self.details or type(self).__name__} ({self.code})" if self.code else self.details


class Unavailable(EtcdError):
    """No member of the cluster answers."""

    remedy = (
        "Check that etcd runs, that the endpoints are correct, and that network policies and TLS admit this client."
    )


class NoLeader(Unavailable):
    """The member that answers has no leader: the cluster has lost its quorum."""

    remedy = "Restore a majority of etcd's members; until then etcd accepts no writes and no consistent reads."


class NotServing(Unavailable):
    """What answers serves no client: a learner, a member whose data are corrupt, or no etcd at all. Others may."""

    remedy = (
        "Promote the learner (etcdctl member promote), or replace the corrupt member (etcdctl alarm list); "
        "check that each endpoint is an etcd's client URL."
    )


class UnreadableFile(Unavailable):
    """A file of the client's own, for TLS or with a password, cannot be read: nobody was asked."""

    remedy = "Check the file's path and that this process may read it; a changed file is read without a restart."


class DeadlineExceeded(EtcdError):
    """No answer in time. A write may or may not have been carried out."""

    remedy = (
        "Check etcd's load and disk latency (etcd_disk_wal_fsync_duration_seconds) and the network; then read back."
    )


class PermissionDenied(EtcdError):
    """The user may not do this."""

    remedy = (
        "Grant the user's role access to the range: etcdctl role grant-permission ROLE --prefix=true read PREFIX, "
        "or readwrite where this program registers."
    )

    def name_grant(self, access: str, *prefixes: bytes) -> None:
        """Have the remedy name what is to be granted: `read` or `readwrite`, and the prefixes of the keys."""
        self.remedy = describe_grant(access, *prefixes)


class AuthFailed(EtcdError):
    """User or password is wrong or missing."""

    remedy = "Set the correct user and password; etcdctl user list shows the users."


class TokenRefused(AuthFailed):
    """The token is no longer valid; a new login fixes it."""

    remedy = (
        "Log in, with a user if none is configured; otherwise compare the members' --auth-token settings and clocks."
    )


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

    remedy = "List again and continue from there."

    def __init__(self, details: str, code: str = "", revision: int = 0) -> None:
        super().__init__(details, code)
        self.revision = revision


class FutureRevision(EtcdError):
    """The revision asked for does not exist yet."""

    remedy = "List again: the history of this etcd differs from the one that was watched."


class HistoryChanged(EtcdError):
    """This etcd does not hold the history that was followed: it was restored from a snapshot or replaced."""

    remedy = "List again. If etcd was not restored or replaced, check that all endpoints belong to one cluster."


class InvalidRequest(EtcdError):
    """etcd does not take the request."""

    remedy = "Change the request; retrying it as it is does not help."


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
    ("not supported for learner", NotServing),
    ("etcdserver: not capable", NotServing),
    ("corrupt cluster", NotServing),
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
    ("Stream removed", Unavailable),  # gRPC's own, of code UNKNOWN: the connection broke under the call
)

# gRPC's own words for a call that found no connection, for lack of an address, of somebody who accepts, or of trust: no
# part of it has left this process. Those of grpcio 1.51 to 1.85.
UNSENT_WORDS = (
    "connections to all backends failing",
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "empty address list",
)

# What refuses a call before it looks at it: words of etcd's interceptors, and the code of a server that has no such
# method.
UNSEEN_WORDS = ("not supported for learner", "etcdserver: not capable")
UNSEEN_CODE = "UNIMPLEMENTED"

ASKS_FOR_USER = "Set a user and its password: this etcd has authentication enabled and requires them."
ASKS_FOR_TLS = (
    "Check that etcd runs there. If it uses TLS, set its CA certificate, or write https:// in front of the endpoints."
)
BROKEN_OFF = (
    "The connection broke while the call was under way, as when a member restarts or a proxy closes it; a write may or "
    "may not have been carried out. If it happens often, check etcd's log and the network between them."
)
NEEDS_ETCD = (
    "Use the client URLs of etcd's members: an etcd grpc-proxy supports neither the watch IDs that clients request "
    "nor progress requests, so clients cannot watch through it."
)
NO_ETCD = "Set the client URLs of etcd's members as endpoints: what answers here is another gRPC server, and no etcd."
UNKNOWN_HOST = "Check the names in etcd's endpoints (some resolve in one namespace only), and the DNS server."
LACKS_TLS = "If etcd does not use TLS, remove the CA and https://."
UNUSABLE_FILES = "Check the CA, the certificate and the key: one of them is not PEM, or they do not match."
DISTRUSTED = (
    "Set the CA that signed etcd's certificate; the certificate must contain this endpoint's host and be valid."
)
NEEDS_CERTIFICATE = "Set a client certificate and its key: this etcd requires one (--client-cert-auth)."
REFUSES_CERTIFICATE = (
    "If etcd requires client certificates (--client-cert-auth), set one and its key; it must be valid and signed by "
    "a CA that etcd trusts."
)
# Words that say more than the class of the error: etcd's, and gRPC's own about TLS; the first that fits wins.
REMEDIES: tuple[tuple[type[EtcdError], str, str], ...] = (
    (TokenRefused, "user name is empty", ASKS_FOR_USER),
    (Unavailable, "errors resolving", UNKNOWN_HOST),
    (Unavailable, "DNS resolution failed", UNKNOWN_HOST),
    (Unavailable, "WRONG_VERSION_NUMBER", LACKS_TLS),
    (Unavailable, "Failed to create security handshaker", UNUSABLE_FILES),
    (Unavailable, "CERTIFICATE_VERIFY_FAILED", DISTRUSTED),
    (Unavailable, "certificate verify failed", DISTRUSTED),
    (Unavailable, "Hostname Verification Check failed", DISTRUSTED),
    (Unavailable, "Peer name", DISTRUSTED),
    (Unavailable, "certificate required", NEEDS_CERTIFICATE),
    (Unavailable, "CERTIFICATE_REQUIRED", NEEDS_CERTIFICATE),
    (Unavailable, "bad certificate", NEEDS_CERTIFICATE),
    # How a server ends a connection over a client certificate that is missing or bad, with TLS 1.3.
    (Unavailable, "TSI_DATA_CORRUPTED", REFUSES_CERTIFICATE),
    (Unavailable, "Stream removed", BROKEN_OFF),
    # How a server ends a connection on which TLS is spoken, and it does not speak it.
    (Unavailable, "Handshake read failed", LACKS_TLS),
    # How a TLS server ends a connection on which no TLS is spoken.
    (Unavailable, "Socket closed", ASKS_FOR_TLS),
    (Unavailable, "Connection reset by peer", ASKS_FOR_TLS),
)

CODES: dict[str, type[EtcdError]] = {
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": TokenRefused,
    "PERMISSION_DENIED": PermissionDenied,
    "INVALID_ARGUMENT": InvalidRequest,
    "CANCELLED": Unavailable,
    "UNIMPLEMENTED": NotServing,  # some other gRPC server
}


def make_error(code: str, details: str) -> EtcdError:
    """Return the error of the tree for a gRPC code and etcd's words."""
    said = next((kind for words, kind in WORDS if words in details), CODES.get(code, EtcdError))
    # gRPC says "Stream removed" as well where a part of the answer has come in time; etcd itself never has this code.
    error = (DeadlineExceeded if code == "DEADLINE_EXCEEDED" else said)(details, code)
    if code == UNSEEN_CODE and said is NotServing and not any(words in details for words in UNSEEN_WORDS):
        error.remedy = NO_ETCD
    for of, words, remedy in REMEDIES:
        if isinstance(error, of) and words in details:
            error.remedy = remedy
            break
    return error


def is_unsent(error: EtcdError) -> bool:
    """Return whether it is certain that the call was never sent or looked at, so that another member may be asked."""
    if isinstance(error, NotServing):
        return error.code == UNSEEN_CODE or any(words in error.details for words in UNSEEN_WORDS)
    return isinstance(error, Unavailable) and any(words in error.details for words in UNSENT_WORDS)


# After these the token is not to be trusted: an etcd that has lost its data does not refuse an old token, it waits
# until it has as many entries as the token says, which may be forever (etcd 3.6, simple tokens carry an index).
TOKEN_DOUBTS = (TokenRefused, DeadlineExceeded)
