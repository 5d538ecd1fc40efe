"""What may not grow: arrows and circles between the operator's modules, and what is bound after construction."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2] / "operator"
NAME = "grpc_etcd_operator"
# Fewer is better: lower these when you can, and say in a decision record why they had to be raised.
MOST_ARROWS = 270  # imports of one module by another


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
    arrows = sum(map(len, graph().values()))
    assert arrows <= MOST_ARROWS, arrows


def test_nothing_is_bound_late() -> None:
    assert late_bindings() == []
