"""Other versions of Python than the machine's, from Debian's packages, kept in the cache: for what is to run on them.

An interpreter of a newer Debian needs that Debian's C library. It gets its own copy of it, and so runs anywhere.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from testbed.build import cache_folder, locked
from testbed.image import ImageError, mirror, run

SUITES = {"3.14": "forky"}  # the Debian release that has it
TOOLS = ("mmdebstrap", "patchelf")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
KEPT = ("usr/bin/python{0}", "usr/lib/python{0}", LIBRARIES)


def install_python(version: str) -> Path:
    """Return an interpreter of this version; raise ImageError where the machine cannot have it."""
    home = cache_folder() / "pythons" / version
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home.with_suffix(".lock")):
        if not home.exists():
            _install_tools()
            with tempfile.TemporaryDirectory(dir=home.parent) as folder:
                _fetch(version, Path(folder))
                _keep(version, Path(folder) / "root", home)
    return home / f"usr/bin/python{version}"


def _install_tools() -> None:
    if os.geteuid() != 0 or os.uname().machine != "x86_64" or not shutil.which("apt-get"):
        raise ImageError("another Python can be had on Debian only, as root, on x86-64")
    if not all(map(shutil.which, TOOLS)):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], quiet)
        run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *TOOLS], quiet)


def _fetch(version: str, folder: Path) -> None:
    packages = f"--include=python{version},python{version}-venv"
    # A copy of the packages may be older than its maintainers meant it to be; it is signed all the same.
    is_old = '--aptopt=Acquire::Check-Valid-Until "false"'
    tar = folder / "root.tar"
    run(["mmdebstrap", "--variant=minbase", is_old, packages, SUITES[version], tar, mirror()])
    (folder / "root").mkdir()
    run(["tar", "-C", folder / "root", "-xf", tar, *(f"./{each.format(version)}" for each in KEPT)])


def _keep(version: str, root: Path, home: Path) -> None:
    """Put the interpreter in its place, with its own loader and C library."""
    libraries, loader = home / LIBRARIES, home / LIBRARIES / "ld-linux-x86-64.so.2"
    interpreter = root / f"usr/bin/python{version}"
    run(["patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, interpreter])
    root.rename(home)
    answer = subprocess.run([home / f"usr/bin/python{version}", "--version"], capture_output=True, check=False)
    if answer.returncode:
        shutil.rmtree(home)
        raise ImageError(f"Python {version} does not run: {answer.stderr.decode(errors='replace')}")
