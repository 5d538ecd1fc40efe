"""Which errors of an outage are news to whoever knows of it."""

from grpc_etcd.etcd.errors import DISTRUSTED, NEEDS_CERTIFICATE, REFUSES_CERTIFICATE, UNUSABLE_FILES, EtcdError

# What only a certificate can be the cause of; a connection that is reset or refused may be anything's.
OF_CERTIFICATES = frozenset({DISTRUSTED, NEEDS_CERTIFICATE, REFUSES_CERTIFICATE, UNUSABLE_FILES})


class Faults:
    """The errors of an outage that have been reported.

    How a connection ended says less than what keeps the next one from being made, and gRPC has one code for both. So an
    error is news if it is of another class than the last one, or the first one that is about these certificates.
    """

    def __init__(self) -> None:
        self._last: type[EtcdError] | None = None
        self._remedies: set[str] = set()

    def is_news(self, error: EtcdError) -> bool:
        """Return whether an error is to be reported, and take it that it is."""
        is_news = type(error) is not self._last or error.remedy in OF_CERTIFICATES - self._remedies
        self._last = type(error)
        self._remedies.add(error.remedy)
        return is_news

    def clear(self) -> None:
        """Record that the outage is over."""
        self._last = None
        self._remedies.clear()
