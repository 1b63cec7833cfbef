"""Commands that are killed at random moments and resumed must end as if they had never been killed."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Contents = Callable[[Path], object]


def run_with_kills(
    command: Sequence[str], folder: Path, *, kills: int, longest: float, seed: int, environment: dict[str, str]
) -> int:
    """Run a command, kill it `kills` times after it has begun to write, each time resume it, and let it end.

    Args:
        command: arguments of defectgen, without --resume.
        folder: the folder that the command locks while it writes.
        longest: the longest time from then to a kill, in seconds.

    Returns:
        The number of kills that came in time.
    """
    rng, killed = np.random.default_rng(seed), 0
    for number in range(kills + 1):
        # It waits for `_is_locked`, which takes the lock for a moment.
        line = [sys.executable, "-m", "defectgen", *command, "--wait", *(["--resume"] if number else [])]
        with subprocess.Popen(line, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True) as process:
            if number < kills:
                while process.poll() is None and not _is_locked(folder):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, longest))
                process.kill()
            said, _ = process.communicate(timeout=120)
        killed += process.returncode == -9
        assert process.returncode in (0, -9), said
    return killed


def assert_same(killed: Path, whole: Path, contents: Contents) -> None:
    """Check that a run that was killed and resumed equals an unbroken one, and left no temporary file."""
    left = [path for path in killed.rglob("*") if path.name.startswith(".") or path.name.endswith("tmp")]
    assert not left, left
    assert contents(killed) == contents(whole)


def _is_locked(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def environment(root: Path) -> dict[str, str]:
    """The environment of a command of the defectgen in `root`."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("DEFECTGEN_")}
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return {**ours, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
