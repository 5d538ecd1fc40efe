"""Proof that the simulation is no toy: defects put back into a copy of the code, each of which it must find.

    python -m tests.simulation.mutants             # all, with what found each and how long it took
    python -m tests.simulation.mutants no-fence

A mutant is a piece of text that stands once in the code, and what stands there instead, so that moves of modules leave
it alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS = 300.0  # within which each must be found
FIRST_SEED = 1


class Mutant(NamedTuple):
    """A defect: what is wrong, and where."""

    name: str
    old: str
    new: str


MUTANTS = (
    Mutant("no-fence", "conditions: list[Compare] = [fence]", "conditions: list[Compare] = []"),
    Mutant(
        "no-compare-at-puts",
        'conditions.append(compare.mod_revision(put.key, "==", put.mod_revision))',
        'conditions.append(compare.version(put.key, ">", -1))',
    ),
    Mutant("leads-blind", "BLIND_SECONDS = 9.0", "BLIND_SECONDS = 9e9"),
    Mutant(
        "goes-on-after-blindness",
        "            self.begin_with_list()\n",
        "            pass\n",
    ),
    Mutant("silence-is-not-ended", "    stream.relist()\n", "    del stream\n"),
    # The one at the end of a transaction is no proof: the flush key that is due then wakes as well.
    Mutant(
        "lost-wake-up",
        "        if self._work.due or self._queue:\n            self._wake.set()\n",
        "        if self._work.due > 1 or self._queue:\n            self._wake.set()\n",
    ),
    Mutant(
        "held-back-is-forgotten",
        "        self._work.release()\n        self._wake.set()\n",
        "        self._wake.set()\n",
    ),
    Mutant(
        "renewals-are-not-repeated",
        "            if renewal is not None and not renewal.answered:\n                renewal.due = now\n",
        "            if renewal is not None and renewal.period_seconds < 0:\n                renewal.due = now\n",
    ),
    Mutant(
        "resumes-one-too-late",
        "        self.next = last.revision + 1\n",
        "        self.next = last.revision + 2\n",
    ),
    Mutant(
        "history-is-kept",
        "            self._history = history\n            self._start_over()\n",
        "            self._history = history\n",
    ),
)


def main(names: list[str]) -> int:
    """Try mutants; return how many were not found."""
    wanted = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    missed = 0
    for mutant in wanted:
        began = time.monotonic()
        found = hunt(mutant)
        missed += not found
        print(f"{mutant.name:<28} {time.monotonic() - began:6.0f} s  {found or 'NOT FOUND'}", flush=True)
    return missed


def hunt(mutant: Mutant) -> str:
    """Simulate a copy of the code with the defect; return what was found, empty if nothing was."""
    with tempfile.TemporaryDirectory(prefix="grpc-etcd-mutant-") as folder:
        copy = Path(folder)
        for part in ("operator", "resolver", "testbed", "tests", "crds"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        put_in(mutant, copy)
        paths = os.pathsep.join(str(copy / part) for part in ("operator", "resolver", "."))
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
        options = [f"--seed={FIRST_SEED}", "--hours=1e6", f"--seconds={SECONDS}"]
        run = subprocess.run(
            [sys.executable, "-m", "tests.simulation", *options],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = (run.stdout + run.stderr).splitlines()
        failed = next((line for line in lines if line.startswith("seed ") and " simulated s per s" not in line), "")
        return failed[:200] if run.returncode else ""


def put_in(mutant: Mutant, copy: Path) -> None:
    """Put a defect into the code."""
    files = [path for part in ("operator", "resolver") for path in (copy / part).rglob("*.py")]
    found = [path for path in files if mutant.old in path.read_text()]
    if len(found) != 1 or found[0].read_text().count(mutant.old) != 1:
        raise LookupError(f"the text of {mutant.name} does not stand in the code once: {found}")
    found[0].write_text(found[0].read_text().replace(mutant.old, mutant.new))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
