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
        self._shape: tuple[type[EtcdError], str, str] | None = None
        self._remedies: set[str] = set()

    def is_news(self, error: EtcdError) -> bool:
        """Return whether an error is to be reported, and take it that it is."""
        is_news = type(error) is not self._last or error.remedy in OF_CERTIFICATES - self._remedies
        self._last = type(error)
        self._remedies.add(error.remedy)
        return is_news

    def is_change(self, error: EtcdError) -> bool:
        """Return whether an error is another one than the last one in more than its numbers, and take it that it is.

        What is shown of an outage follows this: the first error may be how the connection ended, and the next ones why
        there is no other. Addresses and numbers differ from try to try, and would have all who follow a range notified.
        """
        before, self._shape = self._shape, (type(error), error.remedy, _words(error))
        return self._shape != before

    def clear(self) -> None:
        """Record that the outage is over."""
        self._last = self._shape = None
        self._remedies.clear()


def _words(error: EtcdError) -> str:
    """Return an error's words without those that have digits, such as addresses, ports and revisions."""
    return " ".join(word for word in str(error).split() if not any(map(str.isdigit, word)))
