"""Guards of the repository itself: names that would break Python, paths of one machine, one place for the version."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import hypothesis
import yaml

from testbed.generate import generated, stale

ROOT = Path(__file__).resolve().parents[2]
# Home and work folders of whoever wrote a line, in any text file.
MACHINE_PATH = re.compile(rb"(?<![\w.-])/(?:home/\w+|root|Users/\w+|work)/[\w.-]+")


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listing.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_operator_folder_is_no_package() -> None:
    """With an __init__.py it would shadow the standard library's module in every run from the root."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_no_test_package_is_called_operator() -> None:
    assert not [path for path in (ROOT / "tests").rglob("operator") if path.is_dir()]
    assert not list((ROOT / "tests").rglob("operator.py"))


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in tracked_files()
        if path != Path(__file__)
        for match in MACHINE_PATH.finditer(path.read_bytes())
    ]
    assert found == []


# Where a distribution's name is not that of its module.
DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "yaml": "pyyaml",
    "prometheus_client": "prometheus-client",
    "opentelemetry": "opentelemetry-api",
}


def imported(folder: Path) -> set[str]:
    """Name the distributions that the modules of a folder import, wherever in the module they do."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
    foreign = names - sys.stdlib_module_names - {"grpc_etcd", "grpc_etcd_entry", "grpc_etcd_operator"}
    return {DISTRIBUTIONS.get(name, name) for name in foreign}


def declared(needs: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", need)[0].lower() for need in needs}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """So that nothing comes by luck with something else, which may leave it out one day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    library, extras = declared(project["dependencies"]), project["optional-dependencies"]
    cli, operator = imported(ROOT / "resolver/grpc_etcd/cli"), imported(ROOT / "operator")
    assert cli - library == declared(extras["cli"])
    assert operator - library == declared(extras["operator"])
    metrics = declared([*extras["prometheus"], *extras["opentelemetry"]])
    assert imported(ROOT / "resolver/grpc_etcd/metrics") == metrics
    # The plugin is loaded by pytest itself.
    assert imported(ROOT / "resolver") - {"pytest"} == library | declared(extras["cli"]) | metrics
    folders = [path for path in (ROOT / "resolver/grpc_etcd").iterdir() if path.is_dir()]
    without_extras = [path for path in folders if path.name not in {"cli", "metrics"}]
    assert set().union(*map(imported, without_extras)) - {"pytest"} <= library


def test_version_is_told_by_pyproject_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version("grpc-etcd") == project["version"]
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix == ".py" and re.search(r"^__version__\s*=\s*[\"']", path.read_text(), re.MULTILINE)
    ]
    assert elsewhere == []


def test_generated_files_are_fresh() -> None:
    assert stale(generated()) == []


def test_make_alone_prints_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert re.findall(r"^  make (\S+) +\S", printed, re.MULTILINE) == phony[1].split()


def test_ci_runs_nothing_but_make_targets() -> None:
    """So that whatever fails there can be run anywhere by the same words."""
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    script = re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert steps == script
    called = {word for step in steps for word in step.split()[1:] if not word.startswith("-")}
    assert {"lint", "test", "test-faults", "test-interop", "test-matrix", "test-simulation"} <= called <= targets


def selected(arguments: list[str]) -> set[Path]:
    """Return the test files below the paths that a pytest command names, but for those that it ignores."""
    ignored = {arguments[place + 1] for place, each in enumerate(arguments) if each == "--ignore"}
    named = [each for each in arguments if each.startswith("tests") and each not in ignored]
    found = {path for each in named for path in (ROOT / each).rglob("test_*.py")}
    return {path for path in found if not any(path.is_relative_to(ROOT / each) for each in ignored)}


def test_each_quick_test_is_run_by_just_one_of_the_suites_of_make_test() -> None:
    planned = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    suites = [selected(shlex.split(line)) for line in planned.splitlines() if "-m pytest" in line]
    assert len(suites) > 1
    runs = Counter(path for suite in suites for path in suite)
    assert runs == dict.fromkeys((ROOT / "tests").rglob("test_*.py"), 1)


def test_a_check_draws_the_same_examples_every_time() -> None:
    drawn = hypothesis.settings()
    assert drawn.derandomize
    assert drawn.database is None


def test_a_hunt_multiplies_the_examples_of_every_test() -> None:
    """A plain number would stay as small in a hunt."""
    plain = re.compile(r"max_examples=(?!examples\(\d+\))")
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    assert [path.name for path in tests if plain.search(path.read_text())] == []


def test_the_library_needs_grpc_alone_without_upper_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.fullmatch(r"([a-z]+)>=[\d.]+", need) for need in project["dependencies"]]
    assert [each and each[1] for each in found] == ["grpcio", "protobuf"]


def test_constraints_are_names_and_versions_and_cover_all_that_is_asked_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    needs = [*project["dependencies"], *settings["build-system"]["requires"], *settings["dependency-groups"]["dev"]]
    needs += [need for extra in project["optional-dependencies"].values() for need in extra]
    pinned = {canonical(line.partition("==")[0]) for line in lines}
    assert {canonical(re.split(r"[<>=]", need)[0]) for need in needs} - pinned == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# On a busy machine whatever takes a second on a quiet one may take this long.
SHORTEST_WAIT_SECONDS = 25


def impatient_waits(path: Path) -> list[str]:
    """Give the waits of a test for a condition that end sooner than a busy machine may make it true."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"wait_until", "until"}:
            limits = [*node.args[1:], *(each.value for each in node.keywords if each.arg == "timeout_seconds")]
            numbers = [each.value for each in limits if isinstance(each, ast.Constant)]
            short = [each for each in numbers if isinstance(each, int | float) and each < SHORTEST_WAIT_SECONDS]
            found += [f"{path.relative_to(ROOT)}:{node.lineno}: {each} s" for each in short]
    return found


def test_tests_wait_as_long_as_a_busy_machine_takes() -> None:
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert [fault for path in tests for fault in impatient_waits(path)] == []


def test_no_test_lets_kubectl_wait_for_what_has_no_status_yet() -> None:
    """`kubectl wait` fails at once there; testbed.manifests.wait_established does not."""
    pattern = re.compile(r"""kubectl\("wait", (?!"--for=condition=Ready", "gsvc/)|shell\("kubectl wait""")
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [
        str(path.relative_to(ROOT)) for path in tests if path != Path(__file__) and pattern.search(path.read_text())
    ] == []


def test_no_constant_is_given_a_value_twice() -> None:
    """The later one would count for whoever reads the earlier one, and no linter says so."""
    found = []
    for path in tracked_files():
        if path.suffix != ".py":
            continue
        module = ast.parse(path.read_bytes())
        classes = [each.body for each in module.body if isinstance(each, ast.ClassDef)]
        for body in (module.body, *classes):
            names = Counter(name for each in body for name in assigned(each))
            found += [f"{path.relative_to(ROOT)}: {name}" for name, count in names.items() if count > 1]
    assert found == []


def assigned(statement: ast.stmt) -> list[str]:
    """Name what a statement gives a value."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [each.id for each in targets if isinstance(each, ast.Name)]


def test_every_type_that_is_ignored_has_its_reason_beside_it() -> None:
    bare = re.compile(r"# type: ignore(?!\[[a-z, -]+\] +# +\S)")
    folders = ("operator", "resolver", "testbed", "bench", "examples", "tests")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]
    assert [str(path.relative_to(ROOT)) for path in paths if bare.search(path.read_text())] == []


def log_calls(path: Path) -> list[ast.Call]:
    """Find the calls of a module's logger."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and re.fullmatch(
            r"(log|_LOG|LOG|LOGGER|logger)\.(debug|info|warning|error|exception|critical|log)", ast.unparse(node.func)
        )
    ]


def event_of(call: ast.Call) -> str:
    """Return the source of the event that a log call has, empty if there is none."""
    extra = next((each.value for each in call.keywords if each.arg == "extra"), None)
    if not isinstance(extra, ast.Dict):
        return ""
    found = {
        key.value: ast.unparse(value)
        for key, value in zip(extra.keys, extra.values, strict=True)
        if isinstance(key, ast.Constant)
    }
    return found.get("event", "")


def test_every_log_line_has_an_event() -> None:
    """Tests, benchmarks and alerts on logs wait for it, whatever becomes of the message."""
    paths = [path for folder in ("operator", "resolver") for path in sorted((ROOT / folder).rglob("*.py"))]
    calls = {f"{path.relative_to(ROOT)}:{call.lineno}": event_of(call) for path in paths for call in log_calls(path)}
    assert len(calls) > 50, "they are found"
    assert [where for where, event in calls.items() if not event] == []
    names = [(where, name) for where, event in calls.items() for name in re.findall(r"'([^']*)'", event)]
    assert [each for each in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", each[1])] == []
