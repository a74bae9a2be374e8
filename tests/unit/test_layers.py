"""Who may import whom: each layer only those before it, and no circle anywhere."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Rooms of one line do not import one another.
LAYERS = (
    ("util",),
    ("orders",),
    ("dataset", "hub"),
    ("models",),
    ("training",),
    ("tokenizers", "studies"),
    ("evaluation", "performance"),
    ("visualization", "engine_lpd"),
    ("main_lpd", "main_cache"),
    ("app",),
    ("scripts",),
)
# A command at a published path: it may import what commands import.
COMMANDS = ("util.download",)
RANKS = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def project_imports() -> dict[str, set[str]]:
    """Module -> the project's modules that it imports, also in functions and for type checkers."""
    paths = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in ROOMS]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    graph = {}
    for name, path in modules.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= (submodules & modules.keys()) or {node.module}
        graph[name] = imported & modules.keys()
    return graph


ROOMS = {*RANKS, *(f"{room}.py" for room in RANKS)}
IMPORTS = project_imports()


def rank_of(module: str) -> int:
    return len(LAYERS) if module in COMMANDS else RANKS[module.split(".")[0]]


def test_layers_import_only_those_before_them():
    assert len(IMPORTS) > 50, "the walk found the project"
    upward = [
        f"{module} imports {other}"
        for module, imported in sorted(IMPORTS.items())
        for other in sorted(imported)
        if module.split(".")[0] != other.split(".")[0] and rank_of(module) <= rank_of(other)
    ]
    assert upward == []


def test_no_circle():
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names it
