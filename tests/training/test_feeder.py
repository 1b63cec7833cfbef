"""The feeder of batches, in threads and in forked processes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from defectgen.errors import BadInputError, OutOfMemoryError
from defectgen.folders import ProductFolders, read_catalog
from defectgen.methods import info
from defectgen.training.data import Feeder, TrainingData, training_data

CPU = torch.device("cpu")
forked = pytest.mark.skipif(sys.platform != "linux", reason="threads prepare batches there")


def windows_of(source: ProductFolders) -> TrainingData:
    return training_data("defect-gan", read_catalog([source]), info("defect-gan").configure("tiny", {}))


@forked
def test_processes_prepare_the_batches_of_threads(source: ProductFolders) -> None:
    windows = windows_of(source)
    threads, processes = (Feeder(windows, 2, 5, CPU, 2, forks=forks) for forks in (False, True))
    try:
        for step in (0, 1, 2, 9):  # from one stage to the next, steps are left out
            one, other = vars(threads.batch(step)), vars(processes.batch(step))
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert (value is None) == (other[name] is None)
                if value is not None:
                    torch.testing.assert_close(value, other[name], atol=0, rtol=0)
    finally:
        threads.close()
        processes.close()


@forked
@pytest.mark.parametrize("forks", [False, True])
def test_an_image_that_is_gone_is_named(source: ProductFolders, tmp_path: Path, forks: bool) -> None:
    shutil.copytree(source.normals.parent, tmp_path / "copy")
    windows = windows_of(
        ProductFolders(product="part", normals=tmp_path / "copy/normals", defects=tmp_path / "copy/defects")
    )
    shutil.rmtree(tmp_path / "copy")
    feeder = Feeder(windows, 2, 5, CPU, 1, forks=forks)
    try:
        with pytest.raises(BadInputError, match=r"\.png"):
            feeder.batch(0)
    finally:
        feeder.close()


@forked
def test_a_killed_process_is_an_error_that_says_what_to_do(source: ProductFolders) -> None:
    feeder = Feeder(windows_of(source), 2, 5, CPU, 1, forks=True)
    try:
        feeder.batch(0)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        with pytest.raises(OutOfMemoryError, match=r"use fewer --workers"):
            feeder.batch(50)
    finally:
        feeder.close()


_FEEDS = """
import multiprocessing, sys, time
from pathlib import Path
import torch
from defectgen.folders import ProductFolders, read_catalog
from defectgen.methods import info
from defectgen.training.data import Feeder, training_data

source = ProductFolders(product="p", normals=Path(sys.argv[1], "normals"), defects=Path(sys.argv[1], "defects"))
windows = training_data("defect-gan", read_catalog([source]), info("defect-gan").configure("tiny", {}))
feeder = Feeder(windows, 2, 5, torch.device("cpu"), 3, forks=True)
feeder.batch(0)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


@forked
def test_processes_end_with_a_killed_parent(source: ProductFolders) -> None:
    command = [sys.executable, "-c", _FEEDS, str(source.normals.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) == 3
        os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while alive := [pid for pid in children if Path(f"/proc/{pid}/stat").exists() and not ended(pid)]:
        assert time.monotonic() < until, alive
        time.sleep(0.05)


def ended(pid: int) -> bool:
    """Whether a process is a zombie, of which nobody takes notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
