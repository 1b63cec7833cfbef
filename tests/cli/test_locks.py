"""One process writes to a folder at a time; and folders that cannot be written."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest

from defectgen import evaluation
from defectgen.__main__ import main
from defectgen.models.registry import Entry

COMMANDS = {
    "compose": ["compose", "tiles/defects", "tiles/good", "-n", "2", "--out", "o/d"],
    "transfer": ["transfer", "--from", "tiles/defects", "--to", "tiles/good", "-n", "2", "--out", "o/d"],
    "synthesize": ["synthesize", "-n", "2", "--out", "o/d", "--device", "cpu"],
    "train": [
        "train",
        "--method",
        "dt-gan",
        "tiles/good",
        "tiles/defects",
        "--device",
        "cpu",
        "--out",
        "o",
        "--name",
        "d",
    ],
    "evaluate": ["evaluate", "tiles", "tiles/defects", "--out", "o/d"],
}


@pytest.fixture(autouse=True)
def begun(
    model: Entry, trained: list[Any], synthesized: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """The evaluations that begin; nothing is trained, generated or evaluated for long."""
    found: list[object] = []

    def stand_in(*given: object) -> dict[str, Any]:
        found.append(given)
        return {"datasets": {}, "downstream": [], "skipped": []}

    monkeypatch.setattr(evaluation, "evaluate", stand_in)
    return found


@contextmanager
def another_writes(folder: Path) -> Iterator[Callable[[], None]]:
    """The lock of another process, and a function that ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield lambda: fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_ends_or_waits(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with another_writes(Path("o/d")) as end:
        assert main([*COMMANDS[command], "-q"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "o/d: another defectgen is writing here; wait for it (--wait)" in line
        timer, start = Timer(0.3, end), time.monotonic()
        timer.start()
        code = main([*COMMANDS[command], "-q", "--wait"])  # the stand-ins of some write no dataset
        assert time.monotonic() - start > 0.29
        assert code != 2
        assert "another defectgen" not in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["/proc/d", "file/d", "x" * 300, "new/" + "x" * 300])
def test_an_output_that_cannot_be_created(command: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    before = sorted(Path().iterdir())
    assert main([*COMMANDS[command], "-q", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write to {out}" in line
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_read_only(
    command: str, begun: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed before the work."""

    def fail(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    Path("o/d").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert main([*COMMANDS[command], "-q"]) == 2
    assert "cannot write to o/d: Read-only file system; choose another place" in capsys.readouterr().err
    assert not begun


@pytest.mark.parametrize("weights", ["/proc/d/weights.toml", "file/weights.toml", "x" * 300])
def test_a_list_of_models_that_cannot_be_written(
    weights: str, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is noticed before the training, too."""
    Path("file").write_text("")
    assert main([*COMMANDS["train"], "-q", "--weights", weights]) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert trained == []
