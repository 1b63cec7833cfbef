"""Imports go one way: what a part of the package may know of the others."""

import ast
from pathlib import Path

import pytest

import defectgen

PACKAGE = Path(defectgen.__file__).parent
KNOWS: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "images": {"errors"},
    "folders": {"errors", "files", "images"},
    "windows": {"folders", "images"},
    "device": {"errors"},
    "seeding": set(),
    "poisson": {"errors"},
    "checkpoint": {"errors", "files"},
    "registry": {"errors", "files"},
    "nn": set(),
    "methods": {"errors", "nn"},  # no file, no window: tensors alone
    "masks": {"windows"},
    "contents": {"folders", "images", "masks", "windows"},
    "dataset": {"errors", "files", "images"},  # any iterator of samples; no sampler
    "trainer": {
        "checkpoint", "contents", "device", "errors", "files", "folders", "images", "methods", "seeding", "windows",
    },
    "samples": {"dataset", "errors", "files", "folders", "images", "masks", "windows"},
}  # fmt: skip
KNOWS["inspector"] = {"images", "masks", "windows"}
KNOWS["findings"] = {"errors", "files", "images", "inspector"}
KNOWS["repairing"] = {"checkpoint", "device", "errors", "folders", "images", "methods", "trainer", "windows"}
KNOWS["composing"] = {*KNOWS["samples"], "contents", "poisson", "samples", "seeding"}
KNOWS["evaluation"] = {
    "dataset", "device", "errors", "files", "folders", "images", "nn", "seeding", "windows",
}  # fmt: skip
# Training and generating see the whole engine, but nothing sees them except the command line.
KNOWS["sampling"] = {*KNOWS}
KNOWS["cli"] = {*KNOWS}
KNOWS["__main__"] = {*KNOWS}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "defectgen":
            parts |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("defectgen."):
            parts.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("defectgen.")}
    return parts


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_part_imports_only_what_it_may_know(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert imported(path) == set()
    else:
        assert imported(path) - {part} <= KNOWS[part]
