"""Imports go one way: each part of the package knows only those below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import defectgen

PACKAGE = Path(defectgen.__file__).parent
LAYERS: tuple[set[str], ...] = (
    {"errors", "ranking", "markup", "seeding", "signals", "text", "toml", "version"},
    {"files", "ranks"},
    {"imaging"},  # images, masks, windows, patches as arrays; no catalog, no network
    {"mask_matching", "poisson", "device"},
    {"annotations", "label_table"},
    {"marking"},
    {"annotated"},
    {"finding"},
    {"folders"},
    {"nn"},  # what networks share: tensors alone
    {"methods"},
    {"models"},
    {"training", "dataset"},
    {"inspection", "evaluation"},  # evaluation sees files alone
    {"synthesis"},
    {"pipelines"},
    {"cli"},
    {"__main__"},
)
FORBIDDEN = {  # below it, and still none of its business
    "nn": {"files", "folders", "imaging"},
    "methods": {"files", "folders", "imaging"},  # no file, no image: tensors alone
    "dataset": {"training", "models", "methods", "nn", "folders"},  # any iterator of samples; no sampler
    "evaluation": {"training", "inspection", "models", "methods"},
    "cli": {"training", "models", "evaluation", "inspection", "nn"},  # it parses, calls and prints
}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path, *, types: bool = True) -> set[tuple[str, ...]]:
    """The modules of the package that a file imports, anywhere in it, as their parts; or without those for types."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "defectgen":
            module = (node.module or "").split(".")[1:]
            for alias in node.names:
                inner = PACKAGE.joinpath(*module, alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                if is_module or (module):
                    found.add((*module, alias.name) if is_module else tuple(module))
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("defectgen.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_part_imports_only_what_lies_below_it(path: Path) -> None:
    part = part_of(path)
    others = {module[0] for module in imported(path, types=part != "__init__")} - {part}
    if part == "__init__":  # the Python API, each name imported when it is asked for
        assert others == {"version"}
        return
    level = next(i for i, layer in enumerate(LAYERS) if part in layer)
    assert others <= set().union(*LAYERS[:level])
    assert not others & FORBIDDEN.get(part, set())


def test_every_part_has_its_layer() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts == set().union(*LAYERS)


def test_no_two_modules_import_each_other() -> None:
    """Also within a part, and by way of others."""
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in FILES:
        module = path.relative_to(PACKAGE).with_suffix("").parts
        module = module[:-1] if module[-1] == "__init__" else module
        graph[module] = imported(path, types=False) - {module}
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], way: tuple[tuple[str, ...], ...]) -> None:
        assert module not in way, " -> ".join(".".join(each) for each in (*way, module))
        if module not in done:
            for each in graph.get(module, ()):
                visit(each, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_windows_are_geometry_alone() -> None:
    assert imported(PACKAGE / "imaging/windows.py") <= {("imaging", "images")}


@pytest.mark.parametrize(
    "statement",
    ["import defectgen", "import defectgen.methods", "import defectgen.cli", "from defectgen import poisson"],
)
def test_what_must_be_light_never_loads_torch(statement: str) -> None:
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
