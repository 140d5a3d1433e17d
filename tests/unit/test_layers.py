"""Imports run downward only; the launcher and the command line start without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the top down. A module may import from layers below its own, and from its own layer's package or file.
LAYERS = [
    {"cli", "__main__"},
    {"verbs"},
    {"registry", "serve", "tune"},
    {"ensemble"},
    {"train", "export", "predict", "probe", "verify", "bench", "report", "children"},
    {"evaluate", "heatmap"},
    {"scoring", "forward", "metrics", "intervals", "decision", "bundle", "runtimes", "trained", "checkpoint",
     "checkpoint_parts", "checkpoint_writer", "elastic", "tensor_file"},
    {"data", "comm", "models"},
    {"config", "rundir", "world"},
    {"documents", "entry", "stdout", "code", "json_lines", "signals", "views"},
    {"durable"},
    {"errors"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from distrib import metrics` names a module, `from distrib.metrics import measure` does not.
            yield from (f"distrib.{alias.name}" for alias in node.names) if node.module == "distrib" else [node.module]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


FILES = sorted((ROOT / "distrib").rglob("*.py"))


def test_every_room_has_a_layer() -> None:
    rooms = {path.relative_to(ROOT / "distrib").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_distrib_imports_downward(path: Path) -> None:
    own = path.relative_to(ROOT / "distrib").parts[0].removesuffix(".py")
    for module in imports(path):
        assert not module.startswith("launch"), f"{path.name} imports {module}"
        if not module.startswith("distrib.") or own == "__init__" or room(module) == "__version__":
            continue
        other = room(module)
        assert LEVEL[own] <= LEVEL[other], f"{own} imports {other}, which is above it"


@pytest.mark.parametrize("path", sorted((ROOT / "launch").rglob("*.py")), ids=lambda path: path.name)
def test_launch_shares_only_plain_parts(path: Path) -> None:
    allowed = {"distrib.errors", "distrib.documents", "distrib.entry"}
    for module in imports(path):
        assert module.split(".")[0] not in {"torch", "numpy"}, f"{path.name} imports {module}"
        assert not module.startswith("distrib") or module in allowed, f"{path.name} imports {module}"


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for base in ("distrib", "launch"):
        for path in (ROOT / base).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            graph[name] = {module for module in imports(path) if module.startswith(("distrib.", "launch."))}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", ["distrib.cli", "launch.cli"])
def test_the_command_lines_start_light(module: str) -> None:
    heavy = "{'torch', 'numpy', 'sklearn', 'cv2', 'PIL', 'webdataset', 'tensorboard', 'pandas'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
