"""The cache of scores: what is kept for `--resume`, and damaged files."""

import json
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation.data import Example
from defectgen.evaluation.learning import ScoreCache, guesses

SCORES: dict[str, Any] = {"all/a/0": {"ap": 0.1 + 0.2, "curve": [1.0, float("inf")]}, "choice/0": 1 / 3}


def filled(path: Path) -> None:
    cache = ScoreCache(path, "one", resume=False)
    for key, value in SCORES.items():
        assert cache.get(key, partial(copy, value)) == value


def test_scores_are_measured_once(tmp_path: Path) -> None:
    filled(tmp_path / "results.json")
    again = ScoreCache(tmp_path / "results.json", "one", resume=True)
    assert {key: again.get(key, lambda: pytest.fail("measured again")) for key in SCORES} == SCORES
    with pytest.raises(UsageError, match="other images or options"):
        ScoreCache(tmp_path / "results.json", "other", resume=True)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"\xff", b"{", b"null", b'{"identity": "one", "scores": {}}', b'{"identity": 1}', b"[" * 100_000],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text)
    with pytest.raises(BadInputError, match=r"results\.json: damaged: .*--overwrite"):
        ScoreCache(path, "one", resume=True)
    filled(path)  # which --overwrite does


def test_an_altered_score_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    filled(path)
    saved = json.loads(path.read_text())
    saved["scores"]["choice/0"] = "0.5"
    path.write_text(json.dumps(saved))
    with pytest.raises(BadInputError, match="do not match"):
        ScoreCache(path, "one", resume=True)


def test_what_guesses_score_is_as_networks_that_guess_do() -> None:
    """On 6 images of each of 4 classes, one network's luck is within the limit 19 times of 20, and the mean is 1/4."""
    rng = np.random.default_rng(0)
    test = []
    for label in range(4):
        mask = np.zeros((20, 20), np.bool_)
        mask[: 2 * label, :10] = True  # 0, 20, 40 and 60 of 400 pixels
        test += [Example.of(np.zeros((1, 20, 20), np.float32), mask, label)] * 6
    classes, pixels = guesses(test, seeds=1)["balanced_accuracy"], guesses(test, seeds=1)["mean_ap"]
    scores = (rng.integers(4, size=(2000, 24)) == np.arange(4).repeat(6)).mean(axis=1)
    assert classes.mean == pytest.approx(scores.mean(), abs=0.01)
    assert 0.93 < (scores <= classes.limit).mean() < 0.999
    assert guesses(test, seeds=9)["balanced_accuracy"].limit == pytest.approx(0.25 + (classes.limit - 0.25) / 3)
    assert pixels.mean == pytest.approx((20 + 40 + 60) / 3 / 800)
    assert pixels.limit == pytest.approx(2 * pixels.mean)
