"""What may not grow: arrows and circles between the operator's modules, and what is bound after construction."""

import ast
from collections.abc import Collection, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.telemetry.metrics import PREFIX
from grpc_etcd_operator.telemetry.samples import DECLARATIONS

ROOT = Path(__file__).parents[2] / "operator"
NAME = "grpc_etcd_operator"
# Fewer is better: lower these when you can, and say in a decision record why they had to be raised.
# Imports of one module by another, for each module: a file that is cut in two has more of them, and is no worse for it.
MOST_ARROWS = 3.24


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / NAME).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path) -> Iterator[str]:
    """Name what a module imports, wherever in it that is, and be it for type checking only."""
    for node in ast.walk(read(path)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: {each for each in imports(path) if each in known and each != NAME} for name, path in known.items()}


def late_bindings() -> list[str]:
    """List assignments to a part's attribute from outside: `self._part.on_news = ...`."""
    targets = [
        target
        for node in ast.walk(read(ROOT / NAME / "app.py"))
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    return [
        ast.unparse(each)
        for each in targets
        if isinstance(each, ast.Attribute) and not isinstance(each.value, ast.Name) and each.attr.startswith("on_")
    ]


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(graph()).prepare()


def test_there_are_no_more_arrows_between_modules() -> None:
    known = graph()
    arrows = sum(map(len, known.values()))
    assert arrows <= MOST_ARROWS * len(known), (arrows, len(known))


def test_nothing_is_bound_late() -> None:
    assert late_bindings() == []


def texts(path: Path) -> set[str]:
    """Return the texts that a module holds."""
    return {
        each.value for each in ast.walk(read(path)) if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def rooms_of(words: Collection[str], folders: Iterable[Path]) -> dict[str, set[str]]:
    """Return which modules write each of some words in full."""
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    found = {path.stem: texts(path) for path in paths}
    return {word: {name for name, held in found.items() if word in held} for word in words}


def test_a_new_reason_touches_one_room_beside_who_gives_it() -> None:
    reasons = set(Reason) - {"Accepted", "Programmed"}  # types of conditions, too
    rooms = rooms_of(reasons, [ROOT / NAME])
    assert set(map(tuple, rooms.values())) == {("reasons",)}, rooms


def test_a_new_metric_touches_one_room_beside_who_counts_it() -> None:
    declared = {each.name.removeprefix(PREFIX) for each in DECLARATIONS}
    with_prefix = rooms_of({each.exposed for each in DECLARATIONS}, [ROOT / NAME])
    assert len(declared) > 20
    assert not any(with_prefix.values()), "a metric's name is that of its figure"


def test_a_new_layout_touches_its_own_room_and_the_index() -> None:
    names = set(LAYOUT_NAMES) - {"jupiter"}  # the default, which others name
    assert names
    rooms = rooms_of(names, [ROOT / NAME, ROOT.parent / "resolver" / "grpc_etcd"])
    assert all(len(found - {"index"}) <= 1 for found in rooms.values()), rooms
