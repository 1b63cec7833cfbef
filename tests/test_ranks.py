"""Several processes that share a command, on the CPU."""

import contextlib
import filecmp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from defectgen import errors, ranks
from defectgen.__main__ import main
from defectgen.methods import names
from defectgen.models import checkpoint

ROOT = Path(errors.__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("DEFECTGEN_")},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
}
TRAIN = ["--preset", "tiny", "--device", "cpu", "--workers", "1", "--weights", "weights.toml", "--quiet"]


def training(real: Path, method: str, *more: str) -> list[str]:
    size = "64" if method == "dfmgan" else "32"
    stages = ["--set", "backbone_steps=1"] if method == "dfmgan" else []
    folders = [str(real / "normals"), str(real / "defects")]
    return [
        "train", "--method", method, *folders, *TRAIN, "--name", method, "--set", f"image_size={size}", *stages, *more
    ]  # fmt: skip


def datasets(real: Path) -> list[list[str]]:
    """What several ranks must make as one does, to the byte."""
    normals, defects = str(real / "normals"), str(real / "defects")
    common = ["--device", "cpu", "--quiet", "--seed", "1"]
    return [
        ["synthesize", "-n", "7", "--model", "dt-gan-samples", "--category", "crack", "--normals", normals,
         "--format", "yolo", "--out", "synthesized", *common],
        ["transfer", "--from", defects, "--to", normals, "-n", "5", "--out", "transferred", *common],
        ["compose", defects, normals, "-n", "5", "--format", "mvtec", "--out", "composed", *common],
        ["inspect", str(real), "--labels", "--reference", normals, "--threshold", "0.9", "--device", "cpu", "--quiet",
         "--out", "inspected"],
        ["evaluate", str(real), "transferred", "--seeds", "1", "--steps", "1", "--share", "0.5", "--from-scratch",
         "--device", "cpu", "--quiet", "--out", "evaluated"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def real(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the real photographs, which is faster."""
    few = tmp_path_factory.mktemp("few")
    for path in real.rglob("*.png"):
        if int(path.stem) < 5:
            (few / path.relative_to(real)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, few / path.relative_to(real))
    return few


@pytest.fixture(scope="module")
def of_two(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks trained all methods, and made `datasets`."""
    folder = tmp_path_factory.mktemp("two")
    commands = [["check"], *(training(real, method, "--steps", "2") for method in names()), *datasets(real)]
    (folder / "commands.json").write_text(json.dumps(commands))
    command = [*TORCHRUN, str(ROOT / "tests/ranks.py"), "commands.json"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder


def told(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"{rank}.json").read_text()))


def test_all_commands_end_well_on_both_ranks(of_two: Path) -> None:
    assert told(of_two, 0)["codes"] == told(of_two, 1)["codes"]
    assert set(told(of_two, 0)["codes"]) == {0}
    lines = (of_two / "out.txt").read_text().splitlines()
    assert len([line for line in lines if " steps in " in line]) == len(names())  # each said once
    assert len([line for line in lines if "samples written" in line]) == 3


@pytest.mark.parametrize("method", names())
def test_both_ranks_have_the_same_networks_to_the_bit(of_two: Path, method: str) -> None:
    one, other = (told(of_two, rank)["state"][method] for rank in (0, 1))
    assert len(one) > 20
    assert [key for key in one if one[key] != other[key]] == []
    _, saved = checkpoint.load(of_two / "runs" / method / "checkpoint.safetensors")
    assert (saved["step"], saved["ranks"]) == (2, 2)


def test_two_ranks_make_what_one_makes_to_the_byte(
    real: Path, of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in datasets(real):
        assert main(command) == 0
        folder = command[command.index("--out") + 1]
        made = sorted(path.relative_to(tmp_path) for path in (tmp_path / folder).rglob("*") if path.is_file())
        others = sorted(path.relative_to(of_two) for path in (of_two / folder).rglob("*") if path.is_file())
        assert made == others
        assert len(made) > 2
        cached = {Path("evaluated/results.json")}  # in the order in which the networks were ready
        _, different, missing = filecmp.cmpfiles(tmp_path, of_two, sorted({*made} - cached), shallow=False)
        assert (different, missing) == ([], [])
    told = [line for line in capsys.readouterr().out.splitlines() if "regenerated" in line]
    assert len(told) == 3
    assert set(told) <= {*(of_two / "out.txt").read_text().splitlines()}


@contextlib.contextmanager
def two(*command: str, cwd: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """Two ranks, started without torchrun."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, *command], cwd=cwd, text=True, stdout=-1, stderr=-1,
            env={**common, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(path: Path, processes: list["subprocess.Popen[str]"]) -> None:
    until = time.monotonic() + 600
    while not path.exists():
        assert all(process.poll() is None for process in processes), [each.communicate()[1] for each in processes]
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_signal_to_one_rank_saves_once_and_ends_both(real: Path, tmp_path: Path) -> None:
    command = training(real, "dcdganc", "--steps", "100000")
    with two("-m", "defectgen", *command, cwd=tmp_path) as processes:
        wait_for(tmp_path / "runs/dcdganc/checkpoint.safetensors", processes)
        processes[1].send_signal(signal.SIGTERM)
        (_, err), (out, silent) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [143, 143]
    assert "stopped, everything is saved" in err
    assert (out, silent) == ("", "")
    _, saved = checkpoint.load(tmp_path / "runs/dcdganc/checkpoint.safetensors")
    assert saved["step"] > 0


def test_a_killed_rank_is_named_and_ends_the_others(real: Path, tmp_path: Path) -> None:
    command = training(real, "dcdganc", "--steps", "100000")
    with two("-m", "defectgen", *command, cwd=tmp_path) as processes:
        wait_for(tmp_path / "runs/dcdganc/checkpoint.safetensors", processes)
        processes[1].kill()
        _, err = processes[0].communicate(timeout=300)
    assert processes[0].returncode == 1
    (line,) = [line for line in err.splitlines() if line.startswith("defectgen: error: ")]
    assert line.startswith("defectgen: error: rank 1 ended without a word")
    assert "--resume" in line


def test_the_reason_of_another_rank_is_told_and_one_process_resumes(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that only the machine of one rank lacks."""
    (tmp_path / "here").symlink_to(real / "normals")
    script = (
        "import os, sys; from defectgen.__main__ import main; folder = ['here', 'nowhere'][int(os.environ['RANK'])]; "
        "sys.exit(main([each.replace('NORMALS', folder) for each in sys.argv[1:]]))"
    )
    command = ["compose", str(real / "defects"), "NORMALS", "-n", "4", "--out", "out"]
    with two("-c", script, *command, cwd=tmp_path) as processes:
        (_, err), (out, silent) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [1, 4]
    assert err.splitlines()[-1].startswith("defectgen: error: rank 1: nowhere: ")
    assert out == ""
    assert silent.splitlines() in ([], ["defectgen: error: rank 1: nowhere: no such folder"])
    monkeypatch.chdir(tmp_path)
    command = [each.replace("NORMALS", "here") for each in command]
    assert main([*command, "--resume"]) == 0
    assert main([*command[:-1], "whole"]) == 0
    made = sorted(path.relative_to("whole") for path in Path("whole").rglob("*") if path.suffix in (".png", ".jsonl"))
    assert len(made) == 10
    assert filecmp.cmpfiles("out", "whole", made, shallow=False)[1:] == ([], [])


def test_other_commands_run_on_rank_0_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    place = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    for command in (["models"], ["check", "nothing"], ["train", "--help"], ["--version"]):
        assert main(command) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("defectgen ")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 in the environment, without RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment: it should be a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
            "RANK is 2, but WORLD_SIZE 2",
        ),
    ],
)
def test_an_incomplete_environment_is_named(
    place: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    assert main(["compose", "a", "b", "-n", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"defectgen: error: {message}")


def test_what_several_ranks_cannot_do_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], real: Path
) -> None:
    monkeypatch.setattr(ranks, "start", lambda: monkeypatch.setattr(ranks._session, "place", ranks.Place(0, 4, 0, 4)))
    watching = ["inspect", str(real / "normals"), "--reference", "golden", "--watch"]
    batch = training(real, "dt-gan", "--batch-size", "6")
    for command, message in (
        (watching, "--watch: a watched folder is inspected by one process"),
        (batch, "--batch-size 6: 4 processes share a batch equally, two windows each or more; use --batch-size 8"),
    ):
        assert main(command) == 2
        assert f"defectgen: error: {message}" in capsys.readouterr().err
    assert ranks.mine("abcdefghij") == "aei"
