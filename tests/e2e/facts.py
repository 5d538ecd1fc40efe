"""What a writer asks of the rest of an operator that has seen all of Kubernetes, for tests of the writer alone."""

from collections.abc import Iterable


class AllSeen:
    """Facts of units that want different keys; what each ought to have is added by the test (`desired`)."""

    def namespace_of(self, _uid: str) -> str:
        """Name no namespace."""
        return ""

    def outranks(self, uid: str, rival: str) -> bool:
        """Decide nothing: no two units want one key."""
        raise AssertionError(f"{uid} and {rival} want one key")

    def may_write(self) -> bool:
        """Return that GrpcServices were listed."""
        return True

    def has_seen_all(self) -> bool:
        """Return that all was listed."""
        return True

    def has_open_claims(self, _moment: float) -> bool:
        """Return that no claim is waited for."""
        return False

    def awaits_services(self) -> bool:
        """Return that no Service is named that is unknown."""
        return False

    def sources(self, uid: str) -> Iterable[str]:
        """Name one GrpcService for each unit."""
        return [f"service of {uid}"]
