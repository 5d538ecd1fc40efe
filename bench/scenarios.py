"""What is done to the contestants, and the figures that each run yields; no judgement here.

A run is one contestant in one scenario; it returns figures by name. The main program interleaves the runs.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bench.contestants import CLUSTER, OPERATORS, SYNCED, Contestant, Running, make_replica, open_operator, wait_settled
from bench.measuring import cpu_seconds, peak_mib
from bench.rig import BenchPod, Rig
from grpc_etcd.etcd import Etcd, LeaseId, Put, Record, WatchEvents, WatchUpdate
from grpc_etcd.registry.own import synced_key
from testbed.conditions import wait_until
from testbed.replica import Replica

Figures = dict[str, float | list[float]]
CHANGES_PER_SECOND = 20
KINDS = ("ready", "not ready", "terminating")
REPAIRS = 100
LAG = 2 * CHANGES_PER_SECOND  # a Pod that became not ready is ready again two seconds later


def steady(rig: Rig, contestant: Contestant, services: int, seconds: float) -> Figures:
    """500 ready Pods, and 20 changes a second through the API."""
    if len(rig.pods) != 500 or services:
        rig.fill(500, ready=True)
    with contestant.open(rig, services) as running:
        running.process.start()
        wait_settled(running, 500)
        time.sleep(1)  # statuses, too, have been written
        before = cpu_seconds(running.process.pid)
        change_steadily(rig, running, seconds)
        spent = cpu_seconds(running.process.pid) - before
        assert not running.visibility.unmet, f"{running.visibility.unmet} changes were never seen"
        found: Figures = {kind: running.visibility.latencies[kind] for kind in KINDS}
        return found | {"cpu": spent * 30 / seconds, "peak": peak_mib(running.process.pid)}


def change_steadily(rig: Rig, running: Running, seconds: float) -> None:
    """Turn Pods not ready and ready again, and delete others, at a fixed rate; wait until all of it is seen."""
    half = len(rig.pods) // 2
    flapping, dying = rig.pods[:half], itertools.cycle(rig.pods[half:])
    visibility = running.visibility
    to_replace: list[BenchPod] = []
    start = time.monotonic()

    def unready(pod: BenchPod) -> None:
        visibility.expect("not ready", pod.ip, visible=False)
        rig.patch(pod, ready=False)

    def ready(pod: BenchPod) -> None:
        visibility.expect("ready", pod.ip, visible=True)
        rig.patch(pod, ready=True)

    def terminate(pod: BenchPod) -> None:
        visibility.expect("terminating", pod.ip, visible=False)
        rig.terminate(pod)
        to_replace.append(pod)

    with ThreadPoolExecutor(8) as workers:
        for tick in range(int(seconds * CHANGES_PER_SECOND)):
            time.sleep(max(0.0, start + tick / CHANGES_PER_SECOND - time.monotonic()))
            turn = tick // 3
            if tick % 3 == 0:
                workers.submit(unready, flapping[turn % half])
            elif tick % 3 == 1 and turn >= LAG // 3:
                workers.submit(ready, flapping[(turn - LAG // 3) % half])
            else:
                workers.submit(terminate, next(dying))
                if len(to_replace) > LAG:
                    workers.submit(rig.replace, to_replace.pop(0))
    wait_until(lambda: not visibility.unmet, "all changes are seen")


def storm(rig: Rig, contestant: Contestant, services: int, count: int) -> Figures:
    """All Pods turn ready within about a second, and then all not ready again."""
    rig.fill(count, ready=False)
    with contestant.open(rig, services) as running:
        running.process.start()
        wait_seen(rig, running)
        found: Figures = {}
        for direction, ready in (("up", True), ("down", False)):
            before, since = cpu_seconds(running.process.pid), time.monotonic()
            rig.turn(rig.pods, ready=ready)
            found["put " + direction] = time.monotonic() - since
            found[direction] = running.visibility.wait_count(count if ready else 0, since)
            found["cpu " + direction] = cpu_seconds(running.process.pid) - before
        return found | {"peak": peak_mib(running.process.pid)}


def wait_seen(rig: Rig, running: Running) -> None:
    """Wait until a contestant follows all Pods, none of which is ready: one turns ready and not ready again."""
    canary = rig.pods[:1]
    rig.turn(canary, ready=True)
    wait_settled(running, 1)
    rig.turn(canary, ready=False)
    wait_settled(running, 0)
    wait_idle(running)


def wait_idle(running: Running) -> None:
    """Wait until it has stopped using the CPU."""

    def is_idle() -> bool:
        before = cpu_seconds(running.process.pid)
        time.sleep(0.5)
        return cpu_seconds(running.process.pid) - before < 0.05

    wait_until(is_idle, f"{running.process.name} is idle", 120)


def cold_start(rig: Rig, contestant: Contestant, count: int, idle_seconds: float) -> Figures:
    """All Pods are ready, the registry is empty, the process starts; then it idles; our operator also restarts."""
    if len(rig.pods) != count:
        rig.fill(count, ready=True)
    with contestant.open(rig, 50) as running:
        since = time.monotonic()
        running.process.start()
        found: Figures = {"all keys": running.visibility.wait_count(count, since)}
        wait_settled(running, count)
        found |= {"cpu": cpu_seconds(running.process.pid), "peak": peak_mib(running.process.pid)}
        wait_idle(running)
        found["idle"] = idle_percent(running, idle_seconds)
        if contestant in OPERATORS:
            found |= restart(rig, running, count)
            found |= one_change(rig, running, count)
        return found


def idle_percent(running: Running, seconds: float) -> float:
    """CPU of a process to which nothing happens, as a percentage of a core."""
    before = cpu_seconds(running.process.pid)
    time.sleep(seconds)
    return (cpu_seconds(running.process.pid) - before) / seconds * 100


def restart(rig: Rig, running: Running, count: int) -> Figures:
    """Stop it in order, remove a Pod, start it again."""
    with Etcd(running.etcd) as etcd:
        running.process.stop()
        before = provider_revisions(etcd)
        gone = rig.pods[0]
        rig.remove(gone)
        told = running.process.log.read_text().count(SYNCED)
        since = time.monotonic()
        running.process.start()
        wait_until(lambda: len(running.visibility.visible) == count - 1, "the removal is seen")
        seen = running.visibility.last_change - since
        wait_until(lambda: running.process.log.read_text().count(SYNCED) > told, "the synced key is put")
        assert etcd.get(synced_key(CLUSTER)), "the mark stands"
        in_step = time.monotonic() - since
        after = provider_revisions(etcd)
        touched = sum(after.get(key) != revision for key, revision in before.items()) + len(after.keys() - before)
    rig.replace(gone)
    wait_settled(running, count)
    return {"restart": in_step, "change seen": seen, "restart writes": touched - 1}


def provider_revisions(etcd: Etcd) -> dict[bytes, int]:
    """When each provider key was last written."""
    return {r.key: r.mod_revision for r in etcd.get_prefix(b"/jupiter/", keys_only=True).records if b"/prov" in r.key}


def one_change(rig: Rig, running: Running, count: int, changes: int = 100) -> Figures:
    """What a change costs among so many Pods: CPU milliseconds, and latency from the stored bytes to the key."""
    wait_idle(running)
    visibility = running.visibility
    before, since = cpu_seconds(running.process.pid), time.monotonic()
    for number, pod in enumerate(rig.pods[:changes]):
        time.sleep(max(0.0, since + number / CHANGES_PER_SECOND - time.monotonic()))
        visibility.expect(f"one of {count}", pod.ip, visible=False)
        rig.turn([pod], ready=False)
    wait_until(lambda: not visibility.unmet, "all changes are seen")
    spent = cpu_seconds(running.process.pid) - before
    rig.turn(rig.pods[:changes], ready=True)
    wait_settled(running, count)
    return {"change": visibility.latencies[f"one of {count}"], "change cpu": spent / changes * 1000}


def small_change(rig: Rig, contestant: Contestant) -> Figures:
    """The same among 500 Pods, to compare with."""
    rig.fill(500, ready=True)
    with contestant.open(rig, 50) as running:
        running.process.start()
        wait_settled(running, 500)
        return one_change(rig, running, 500)


def repairs(rig: Rig) -> Figures:
    """Somebody damages keys among 500, one at a time; how long until each is as it was, under its own lease."""
    rig.fill(500, ready=True)
    with open_operator(rig, 50) as running, Etcd(running.etcd) as etcd:
        running.process.start()
        wait_settled(running, 500)
        wait_idle(running)
        whole = [r for r in etcd.get_prefix(b"/jupiter/").records if b"/prov" in r.key]
        other = etcd.lease(600)
        damages: dict[str, Callable[[Record], object]] = {
            "overwritten": lambda record: etcd.put(record.key, b"{}", lease=other),
            "deleted": lambda record: etcd.delete(record.key),
            "revoked": lambda record: etcd.revoke(LeaseId(record.lease)),
        }
        victims = iter(whole)
        with etcd.list_watch(b"/jupiter/") as watch:
            next(watch)  # the list; the watch opens with the first damage, which etcd tells late
            repair(watch, next(victims), damages["deleted"])
            return {name: [repair(watch, next(victims), do) for _ in range(REPAIRS)] for name, do in damages.items()}


def repair(watch: Iterator[WatchUpdate], record: Record, damage: Callable[[Record], object]) -> float:
    """Damage a key; return after how many milliseconds it was as before."""
    since = time.monotonic()
    damage(record)
    for news in watch:
        puts = (
            [event.record for event in news.events if isinstance(event, Put)] if isinstance(news, WatchEvents) else []
        )
        if any((put.key, put.value, put.lease) == (record.key, record.value, record.lease) for put in puts):
            return (time.monotonic() - since) * 1000
    raise AssertionError("a list-watch never ends by itself")


@contextmanager
def two_replicas(rig: Rig) -> Iterator[tuple[Replica, Replica, Running]]:
    """A leader, a standby that is warm, and 500 Pods."""
    rig.fill(500, ready=True)
    with open_operator(rig, 50) as running:
        leader, standby = make_replica(rig, running.etcd), make_replica(rig, running.etcd)
        try:
            leader.start().wait_leading()
            wait_until(lambda: len(running.visibility.visible) == 500, "500 addresses visible")
            standby.start()
            wait_until(lambda: len(standby.lines("listed")) == 2, "the standby is warm")
            yield leader, standby, running
        finally:
            leader.process.kill()
            standby.process.kill()


def takeover(rig: Rig, signal: int) -> Figures:
    """The leader gets a signal and a Pod turns not ready at that moment; how long until its key is gone."""
    with two_replicas(rig) as (leader, _, running), Etcd(running.etcd) as etcd:
        before = provider_revisions(etcd)
        pod = rig.pods[0]
        leader.process.signal(signal)
        since = time.monotonic()
        rig.turn([pod], ready=False)
        wait_until(lambda: pod.ip not in running.visibility.visible, "the standby has taken over")
        after = provider_revisions(etcd)
        lost = sum(after.get(key) != revision for key, revision in before.items()) - 1
        return {"takeover": running.visibility.last_change - since, "keys touched": lost}


def same_pod(rig: Rig) -> Figures:
    """The only replica is killed while a Pod turns not ready; how long its next process takes until the key is gone."""
    rig.fill(500, ready=True)
    with open_operator(rig, 50) as running, Etcd(running.etcd) as etcd:
        first, second = (make_replica(rig, running.etcd, "--identity=bench-0") for _ in range(2))
        try:
            first.start().wait_leading()
            wait_until(lambda: len(running.visibility.visible) == 500, "500 addresses visible")
            before, pod = provider_revisions(etcd), rig.pods[0]
            first.process.kill()
            rig.turn([pod], ready=False)
            since = time.monotonic()
            second.start()
            wait_until(lambda: pod.ip not in running.visibility.visible, "the next process has taken over")
            after = provider_revisions(etcd)
        finally:
            first.process.kill()
            second.process.kill()
    lost = sum(after.get(key) != revision for key, revision in before.items()) - 1
    return {"takeover": running.visibility.last_change - since, "keys touched": lost}
