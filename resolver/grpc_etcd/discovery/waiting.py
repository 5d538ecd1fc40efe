"""Until when the first answer about a service is waited for. Pure.

Waiting is a state of its own, and never an empty set: a channel that is notified of an empty set fails its calls, one
that is sent nothing lets them wait. The first row that fits counts:

    something unforeseen went wrong, or no provider keys may be read      no longer: calls fail with the reason
    the registry has answered that there is no such service               until names like it have been looked up
    the registry has answered                                             no longer: its word counts
    the disk has endpoints to call, and etcd cannot be watched           no longer: they are called
    the disk has endpoints to call                                        until etcd had the time to answer
    etcd cannot be watched                                               until that has lasted for a while
    nothing has been received                                                for as long as gRPC itself would wait

So a connection that breaks just when a service is asked for, or a set on disk that is older than etcd's, costs the
first calls a moment at most, while those in an outage that lasts fail at once. Times are seconds on any clock that
never goes back.
"""

import math

from grpc_etcd.discovery.state import ResolverState, Source

OVER = -math.inf
# With its defaults etcd has elected a leader again after 1 to 2 s, and meanwhile answers nobody.
PATIENCE_SECONDS = 3.0
CACHE_SECONDS = 1.0  # arbitrary: an etcd that is in reach has answered by then
NAMES_SECONDS = 1.0  # arbitrary: as for the cache; a user may have no permission to read them
# Before gRPC itself gives up, after 15 s, and says that there is no such resource.
SILENCE_SECONDS = 14.0


def waits_until(
    view: ResolverState, fault: str, begun: float, lost_at: float | None, looking_since: float | None = None
) -> float:
    """Return until when to wait, of what has been followed since `begun`; `lost_at` is since when etcd cannot be.

    `looking_since` is since when names are looked up that are like one that cannot be found.
    """
    if fault or view.is_denied:
        return OVER
    if view.source not in (Source.UNKNOWN, Source.CACHE):
        return OVER if looking_since is None or view.callables else looking_since + NAMES_SECONDS
    if view.callables:
        return begun + CACHE_SECONDS if lost_at is None else OVER
    return min(begun + SILENCE_SECONDS, math.inf if lost_at is None else lost_at + PATIENCE_SECONDS)
