"""Decides which replica writes statuses, gates and claims: there are several registries, and each has a leader."""

from collections.abc import Iterable, Mapping

from grpc_etcd_operator.controller.registry_controller import RegistryController
from grpc_etcd_operator.core.services import DEFAULT_REGISTRY


class StatusLeader:
    """Says whether this replica is the one that writes.

    The registries are taken by their names, the default one first, not in the order of the settings: while a change of
    the settings is rolled out another replica's may differ, and each would leave it to the other.
    """

    def __init__(self, controllers: Iterable[RegistryController]) -> None:
        self._controllers = sorted(controllers, key=lambda each: (each.name != DEFAULT_REGISTRY, each.name))

    def may_report(self) -> bool:
        """Let one replica report for all registries, once what it knows of each is worth reporting."""
        return all(controller.can_report for controller in self._controllers) and self._reports()

    def may_grant(self) -> bool:
        """Let the same replica write claims, which nothing has to be written for before; it has to know all others."""
        return self._reports() and not any(controller.election.awaits_sight for controller in self._controllers)

    def down(self) -> Mapping[str, str]:
        """Name the registries that cannot be written, and why."""
        return {controller.name: text for controller in self._controllers if (text := controller.complaint)}

    def _reports(self) -> bool:
        """Return whether this replica is the last that led the first of the registries of which a leader is known.

        Who led a registry whose etcd has been unavailable for long may be gone: the next registry's leader speaks.
        Unless somebody else is still seen to write there: then it is this replica alone that has lost it.
        Where nobody is, or nobody who could speak for our GrpcServices, any replica does.
        """
        led = [each for each in self._controllers if each.election.is_leader_known]
        led = [controller for controller in led if not controller.election.is_leader_apart]
        if led:
            return next((each for each in led if not self._is_gone(each)), led[0]).election.may_report
        return all(controller.standing.reason for controller in self._controllers)

    def _is_gone(self, lost: RegistryController) -> bool:
        return lost.is_gone(is_other_alive=any(each.election.has_able_standby for each in self._controllers))
