"""Decides which replica writes statuses, gates and claims: there are several registries, and each has a leader."""

from collections.abc import Mapping, Sequence

from grpc_etcd_operator.controller.registry_controller import Station


class StatusLeader:
    """Says whether this replica is the one that writes. `stations` are in the order of the settings."""

    def __init__(self, stations: Sequence[Station]) -> None:
        self._stations = stations

    def may_report(self) -> bool:
        """Let one replica report for all registries, once what it knows of each is worth telling."""
        return all(station.can_report for station in self._stations) and self._speaks()

    def may_grant(self) -> bool:
        """Let the same replica write claims, which nothing has to be written for before."""
        return self._speaks()

    def down(self) -> Mapping[str, str]:
        """Name the registries that cannot be written, and why."""
        return {station.name: text for station in self._stations if (text := station.complaint)}

    def _speaks(self) -> bool:
        """Say whether this replica is the last that led the first of the registries of which a leader is known.

        Who led a registry whose etcd has been out of reach for long may be gone: the next registry's leader speaks.
        Where nobody is, or nobody who could speak for our GrpcServices, any replica does.
        """
        led = [each for each in self._stations if each.election.is_leader_known]
        led = [station for station in led if not station.election.is_leader_apart]
        if led:
            return next((each for each in led if not each.is_long_lost), led[0]).election.may_speak
        return all(station.standing.reason for station in self._stations)
