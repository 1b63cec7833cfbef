"""The cache of scores: what is kept for `--resume`, and damaged files."""

import json
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation.learning import ScoreCache

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
