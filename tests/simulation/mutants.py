"""Proof that the simulation is no toy: defects put back into a copy of the code, each of which it must find.

    make simulate MUTANT=all             # a table of all, with what found each and how long it took
    make simulate MUTANT=no-fence SEED=1

A mutant is made of pieces of text that stand once in the code, and what stands there instead, so that moves of modules
leave it alone.
"""

import argparse
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.simulation.__main__ import MOST_SEEDS

ROOT = Path(__file__).parents[2]
SECONDS = 300.0  # of processor time, within which each must be found
PARTS = ("operator", "resolver", "testbed", "tests", "crds")
TEXT = 120  # characters of what was found
_GREEN = re.compile(r"seed \d+: ([\d.]+) h, ")
_FAILED = re.compile(r"seed (\d+) fails after ([\d.]+) h: (.*)")


class Edit(NamedTuple):
    """A piece of text that stands once in the code, and what stands there instead."""

    old: str
    new: str


class Mutant(NamedTuple):
    """A defect: what it is called, and what puts it into the code."""

    name: str
    edits: tuple[Edit, ...]


def _mutant(name: str, *edits: tuple[str, str]) -> Mutant:
    """Describe a defect."""
    return Mutant(name, tuple(Edit(*each) for each in edits))


MUTANTS = (
    # Fences, compares, leases
    _mutant("no-fence", ("conditions: list[Compare] = [*fence]", "conditions: list[Compare] = []")),
    # The lease in the fence alone keeps all from being written where nobody leads, so it goes, too.
    _mutant(
        "fence-of-whoever-leads",
        (
            "            if self._parts.election.term != term:\n                self._come_again(plans)\n",
            "            if self._parts.election.term < 0:\n                self._come_again(plans)\n",
        ),
        (
            "            result = await self._parts.etcd.transaction(transaction.conditions, transaction.operations, ",
            (
                "            fence = self._parts.election.fence(self._parts.election.revision)\n"
                "            conditions = [fence[0], *transaction.conditions[2:]]\n"
                "            result = await self._parts.etcd.transaction(conditions, transaction.operations, "
            ),
        ),
        ("        if term <= 0:\n", "        if term < 0:\n"),
    ),
    _mutant(
        "no-compare-at-puts",
        (
            'conditions.append(compare.mod_revision(put.key, "==", put.mod_revision))',
            'conditions.append(compare.version(put.key, ">", -1))',
        ),
    ),
    _mutant(
        "leases-are-let-run-out",
        (
            "            self._keep_alive.add(LeaseId(lease), self._ttl, remaining_seconds=remaining_seconds)\n",
            "            del remaining_seconds\n",
        ),
    ),
    _mutant(
        "renewals-are-not-repeated",
        (
            "            if renewal is not None and not renewal.answered:\n                renewal.due = now\n",
            "            if renewal is not None and renewal.period_seconds < 0:\n                renewal.due = now\n",
        ),
    ),
    # Sight and health
    _mutant("leads-blind", ("BLIND_SECONDS = 9.0", "BLIND_SECONDS = 9e9")),
    _mutant(
        "goes-on-after-blindness",
        (
            "not (self.is_lost or self.is_listed):\n            self.begin_with_list()\n",
            "not (self.is_lost or self.is_listed):\n            pass\n",
        ),
    ),
    _mutant("requests-may-hang", ("HEAD_SECONDS = 10.0", "HEAD_SECONDS = 9e9")),
    _mutant("writes-blind", (" and election.may_write and ", " and ")),
    _mutant(
        "silence-is-not-ended", ("stream.namespace}})\n    stream.relist()\n", "stream.namespace}})\n    del stream\n")
    ),
    _mutant(
        "error-is-never-over",
        ("                self.trouble.end()  # nothing is left to be written, so nothing else would report\n", ""),
    ),
    _mutant(
        "synced-without-looking",
        ("wanted = term != 0 and self._is_in_step()", "wanted = term != 0"),
        ("if not wanted or (await self._may_confirm() and self._is_in_step()):", "if not wanted or self._election:"),
    ),
    # What is known of etcd, and what is to be written
    # The one at the end of a transaction is no proof: the flush key that is due then wakes as well.
    _mutant(
        "lost-wake-up",
        (
            "        if self._work.due or self._queue:\n            self._wake.set()\n",
            "        if self._work.due > 1 or self._queue:\n            self._wake.set()\n",
        ),
    ),
    _mutant(
        "held-back-is-forgotten",
        ("        self._work.release()\n        self._wake.set()\n", "        self._wake.set()\n"),
    ),
    _mutant(
        "resumes-one-too-late",
        ("        self.next = last.revision + 1\n", "        self.next = last.revision + 2\n"),
    ),
    _mutant(
        "history-is-kept",
        (
            "            self._history = history\n            self._start_over()\n",
            "            self._history = history\n",
        ),
    ),
    # Claims
    _mutant(
        "names-go-to-the-oldest",
        ("{claim: Rank(since, created, uid) for", '{claim: Rank("", created, uid) for'),
        ("(first := min(firsts)) < mine.get(claim, LAST)", "(first := min(firsts)) < min(mine.values(), default=LAST)"),
    ),
    _mutant(
        "prefixes-within-others-are-free",
        (
            "        places = [Place(etcd, prefix, is_below=False) for prefix in ancestors(claim.prefix)]\n",
            "        places = list[Place]()\n",
        ),
    ),
    _mutant(
        "policies-are-not-claimed",
        ("    yield policy_key(spec.prefixes[registry], spec.registry_name) + SLASH\n", ""),
    ),
    _mutant(
        "own-keys-may-be-claimed",
        ("if not spec.prefix or self._is_allowed(spec.prefix):", "if self or self._is_allowed(spec.prefix):"),
        (
            "if claim.prefix != policy and (is_reserved or claim.prefix.startswith(ROOT)):",
            "if claim.prefix != policy and is_reserved and not ROOT:",
        ),
    ),
    # One object disturbs others
    _mutant(
        "refused-prefix-holds-all-up",
        (
            "        return {self._owners, *self.streams.all_used()} - self.feed.refused.keys()\n",
            "        return {self._owners, *self.streams.all_used()}\n",
        ),
    ),
    _mutant(
        "refused-batch-is-not-divided",
        ("        half = len(plans) // 2\n", "        half = len(plans) // 1_000\n"),
    ),
    _mutant(
        "fault-holds-gates",
        (
            "        fault = next((each for each in faults if each.reason not in HARMLESS), None)\n",
            "        fault = next((each for each in faults if each.reason in HARMLESS), None)\n",
        ),
    ),
    _mutant(
        "slip-deregisters", ("KEEPING = (Reason.PORT_NOT_FOUND, Reason.UNWRITABLE)", "KEEPING: tuple[Reason, ...] = ()")
    ),
    _mutant(
        "pods-are-read-as-services",
        (
            "            await self._look_up_pod(seen)\n            return self._objects(resource)",
            (
                "            raw = await self._client.read(resource, seen.namespace, seen.name)\n"
                "            self._reconciler.note_listed_pod(raw)\n"
                "            return self._objects(resource)"
            ),
        ),
    ),
    _mutant(
        "conflict-is-the-end-of-a-gate",
        (
            "elif self._is_worth_trying_again(uid, pod.namespace, error):\n                self._queue.gates.add(uid",
            'elif "(409)" not in str(error):\n                self._queue.gates.add(uid',
        ),
    ),
    _mutant(
        "who-leads-all-reports",
        (
            "            return next((each for each in led if not self._is_gone(each)), led[0]).election.may_report\n",
            "            return all(each.election.may_report for each in led)\n",
        ),
    ),
    # A client's own following of services
    _mutant("judges-each-range-alone", ("        cut = min(known)\n", "        cut = max(known)\n")),
    _mutant(
        "other-history-is-believed",
        (
            "        if before.history != BEFORE_ALL or cut.revision < before.revision:\n",
            "        if before.history == BEFORE_ALL and cut.revision < before.revision:\n",
        ),
    ),
    _mutant(
        "refusal-is-for-good",
        (
            '        self.known = self.listed = position\n        self.refusal = ""\n',
            "        self.known = self.listed = position\n",
        ),
        (
            '        self.known = max(self.known or position, position)\n        self.refusal = ""\n',
            "        self.known = max(self.known or position, position)\n",
        ),
    ),
    _mutant("kept-set-grows", ("            self._good = now\n", "            self._good = {**self._good, **now}\n")),
    _mutant(
        "first-to-come-replaces-all",
        (
            "        self._kept = {address: endpoint for address, endpoint in self._kept.items()",
            "        self._kept = {address: endpoint for address, endpoint in self._kept.items() if not confirmed",
        ),
    ),
    # Services that GrpcServices name
    _mutant(
        "missing-service-selects-nobody",
        (
            "    return service.without_target(*taken) if spec.enable else service.with_target(NOBODY, None)\n",
            "    return service.with_target(NOBODY, None)\n",
        ),
    ),
    _mutant(
        "service-that-goes-unseen-stays",
        (
            "        gone = [uid for each in missing if each.uid not in listed for uid in self.forget(each)]\n",
            "        gone = [uid for each in missing if not each.uid for uid in self.forget(each)]\n",
        ),
    ),
    _mutant(
        "who-sees-no-services-is-blind",
        (
            "            self._freshness.blind_seconds,\n            self._freshness.is_behind,\n",
            (
                "            lambda: max(each.blind_seconds() for each in"
                " (self._freshness, self._target_watch.freshness) if each.streams),\n"
                "            self._freshness.is_behind,\n"
            ),
        ),
    ),
    # Pods
    _mutant(
        "lost-node-is-not-seen",
        (
            '    if ready_followed and not _is_true(conditions, "Ready"):\n        return False\n',
            "    del ready_followed\n",
        ),
    ),
    _mutant(
        "out-of-scope-is-gone",
        (
            "        self._reconciler.note_out_of_scope(message)\n        self._outside",
            "        self._reconciler.forget_pod(metadata.uid)\n        self._outside",
        ),
    ),
)


class Hunt(NamedTuple):
    """What has come of a hunt; without a seed nothing was found. `is_defect_alone`: without the defect that is well."""

    hours: float
    seconds: float
    seed: int | None = None
    text: str = ""
    is_defect_alone: bool = False

    def __str__(self) -> str:
        if self.seed is None:
            return f"NOT FOUND | {self.hours:.1f} | {self.seconds:.0f} |"
        text = self.text if self.is_defect_alone else f"FAILS WITHOUT THE DEFECT TOO: {self.text}"
        return f"{self.seed} | {self.hours:.1f} | {self.seconds:.0f} | {text}"


def main(arguments: list[str] | None = None) -> int:
    """Try mutants, and print a table; return how many were not found."""
    options = parse(arguments)
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        sys.exit(f"there is no mutant {', '.join(sorted(unknown))}")
    missed = 0
    print("| mutant | seed | simulated hours | seconds of processor time | what was found |")
    print("| --- | --- | --- | --- | --- |")
    for mutant in MUTANTS:
        if not options.names or mutant.name in options.names:
            found = hunt(mutant, options.seed or random.randrange(MOST_SEEDS), options.seconds)
            missed += not found.is_defect_alone
            print(f"| {mutant.name} | {found} |", flush=True)
    return missed


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="default: all")
    parser.add_argument("--seed", type=int, help="the first seed; default: any, for each mutant another")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of processor time, for each")
    return parser.parse_args(arguments)


def hunt(mutant: Mutant, seed: int, seconds: float) -> Hunt:
    """Simulate a copy of the code with the defect, and what was found without it, too."""
    with tempfile.TemporaryDirectory(prefix="grpc-etcd-mutant-") as folder:
        copy, began = Path(folder), spent()
        for part in PARTS:
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        put_in(mutant, copy)
        run = simulate_in(copy, f"--seed={seed}", "--hours=1e6", f"--seconds={seconds}", "--processor")
    lines, used = run.stdout.splitlines(), spent() - began
    hours = sum(float(found[1]) for line in lines if (found := _GREEN.match(line)))
    failed = next((found for line in lines if (found := _FAILED.match(line))), None)
    if not (run.returncode and failed):
        return Hunt(hours, used)
    found_seed, until, text = int(failed[1]), float(failed[2]), failed[3]
    clean = simulate_in(ROOT, f"--seed={found_seed}", f"--hours={until}")
    return Hunt(hours + until, used, found_seed, text[:TEXT].replace("|", "/"), is_defect_alone=clean.returncode == 0)


def simulate_in(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Simulate the code of a folder."""
    paths = os.pathsep.join(str(folder / part) for part in ("operator", "resolver", "."))
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--no-shrink", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def spent() -> float:
    """Return the seconds of processor time that children have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def put_in(mutant: Mutant, copy: Path) -> None:
    """Put a defect into the code."""
    for edit in mutant.edits:
        files = [path for part in ("operator", "resolver") for path in (copy / part).rglob("*.py")]
        found = [path for path in files if edit.old in path.read_text()]
        if len(found) != 1 or found[0].read_text().count(edit.old) != 1:
            raise LookupError(f"the text of {mutant.name} does not stand in the code once: {found}")
        found[0].write_text(found[0].read_text().replace(edit.old, edit.new))


if __name__ == "__main__":
    sys.exit(main())
