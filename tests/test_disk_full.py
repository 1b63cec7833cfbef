"""A disk that is really full: a small tmpfs, where root may mount one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "examples/samples/steel"


def mount(folder: Path, kilobytes: int, *options: str) -> bool:
    more = ",".join((f"size={kilobytes}k", *options))
    line = ["mount", "-t", "tmpfs", "-o", more, "none", str(folder)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount(folder, 512)
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def compose(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    folders = str(SAMPLES / "defects"), str(SAMPLES / "normals")
    line = [sys.executable, "-m", "defectgen", "compose", *folders, "-n", "40", "--quiet", "--out", str(out), *more]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "images").rglob("*.png")}


def test_a_full_disk_ends_with_its_code_and_is_resumed_when_there_is_space(small: Path, tmp_path: Path) -> None:
    done = compose(small / "set")
    assert done.returncode == 6
    (line,) = done.stderr.splitlines()
    assert line.startswith("defectgen: error: ")
    assert "--resume" in line
    assert not list(small.rglob("*tmp"))
    assert mount(small, 20_000, "remount")
    assert compose(small / "set", "--resume").returncode == 0
    assert compose(tmp_path / "whole").returncode == 0
    assert contents(small / "set") == contents(tmp_path / "whole")
