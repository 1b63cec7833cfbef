"""`evaluate` on sets whose answers are known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectgen import evaluation
from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation import EvaluateRequest, Extent, downstream, evaluate, verdicts
from defectgen.evaluation.data import LabeledImage
from defectgen.imaging.images import encode_png

SMALL = Extent(steps=2, seeds=2, samples=24, normals=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> Path:
    """A folder of synthetic defects without a manifest."""
    root = tmp_path_factory.mktemp("made")
    for category in ("bar", "disc"):
        for i in range(6):
            for name, pixels in zip(("defects", "masks"), draw(900 + i, category), strict=True):
                path = root / name / category / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(pixels))
    return root / "defects"


@pytest.fixture
def request_for(real: Path, held: Path, made: Path, tmp_path: Path) -> EvaluateRequest:
    return EvaluateRequest(real, made, tmp_path / "report", test=held, extent=SMALL, device="cpu")


def test_the_report_holds_every_part_in_both_forms(request_for: EvaluateRequest) -> None:
    stages = set()
    found = evaluate(request_for, lambda stage, _done, _total: stages.add(stage))
    assert stages == {"fidelity", "copies", "masks", "networks"}
    assert found["counts"]["real_test"] == {"bar": 5, "disc": 5, "normal": 3}
    assert found["counts"]["synthetic"] == {"bar": 6, "disc": 6}
    assert set(found["fidelity"]) == {"bar", "disc"}
    assert "fid" not in found["fidelity"]["bar"]
    assert found["mask_agreement"] is None  # no manifest names a source
    assert (found["traceable"], found["memorisation"]["of"]) == (False, 12)
    for task in ("classification", "segmentation"):
        scores = found["downstream"][task]["scores"]
        assert set(scores) == set(downstream.TRAINING_SETS)
        assert all(0 <= value["mean"] <= 1 for arm in scores.values() for value in arm.values())
        assert found["downstream"][task]["against_baseline"]["seeds"] == 2
        better = max(
            "traditional", "real", key=lambda arm: scores[arm][found["downstream"][task]["decided_by"]]["mean"]
        )
        assert found["downstream"][task]["baseline"] == better
    assert json.loads((request_for.out / "report.json").read_text()) == json.loads(json.dumps(found))
    html = (request_for.out / "report.html").read_text()
    assert "http" not in html.replace("http-equiv", "")  # nothing is fetched
    assert html.count("data:image/jpeg;base64,") >= 4 + len(found["memorisation"]["worst"])
    assert "<svg" in html
    assert "is unchecked" in html
    assert [line.split(":")[0] for line in verdicts(found)] == ["classification", "segmentation"]


def test_a_report_is_gone_on_with_and_never_overwritten_unasked(
    request_for: EvaluateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    segmenter, classifier = downstream.train_segmenter, downstream.train_classifier

    def counted(kind: str, function: Any) -> Any:
        def stand_in(*arguments: Any, **settings: Any) -> Any:
            if len(trained) == 3 and "stop" in flags:
                raise KeyboardInterrupt
            trained.append(kind)
            return function(*arguments, **settings)

        return stand_in

    flags = {"stop"}
    monkeypatch.setattr(downstream, "train_segmenter", counted("s", segmenter))
    monkeypatch.setattr(downstream, "train_classifier", counted("c", classifier))
    with pytest.raises(KeyboardInterrupt):
        evaluate(request_for)
    assert trained == ["c"] * 3
    with pytest.raises(UsageError, match="go on with --resume"):
        evaluate(request_for)
    flags.clear()
    resumed = evaluate(replace(request_for, resume=True))
    assert len(trained) == 12  # each of two kinds, three arms and two seeds once
    whole = evaluate(replace(request_for, overwrite=True))
    assert whole["downstream"] == resumed["downstream"]
    with pytest.raises(UsageError, match="of other photographs or options"):
        evaluate(replace(request_for, resume=True, seed=1))


def test_the_test_set_itself_is_refused(request_for: EvaluateRequest, held: Path) -> None:
    with pytest.raises(BadInputError, match="is a test photograph"):
        evaluate(replace(request_for, synthetic=held / "defects"))


def test_copies_of_the_training_are_counted(request_for: EvaluateRequest, real: Path) -> None:
    found = evaluate(replace(request_for, synthetic=real / "defects", extent=replace(SMALL, steps=1, seeds=1)))
    assert found["memorisation"]["near_copies"] == found["memorisation"]["of"] == 20
    for pair in found["memorisation"]["worst"]:
        assert pair["synthetic"] == pair["real"]
        assert pair["similarity"] > 0.99


def test_without_a_test_set_some_are_put_aside(request_for: EvaluateRequest) -> None:
    real, _, left_out, _ = evaluation.read(replace(request_for, test=None))
    assert evaluation.counts(real.train) == {"bar": 6, "disc": 6, "normal": 7}
    assert evaluation.counts(real.test) == {"bar": 4, "disc": 4, "normal": 5}
    assert left_out == 0


def test_categories_that_are_not_told_apart_become_one(
    request_for: EvaluateRequest, made: Path, tmp_path: Path, real: Path
) -> None:
    for name in ("defects", "masks"):
        (tmp_path / "one" / name).mkdir(parents=True)
        (tmp_path / "one" / name / "any").symlink_to(made.parent / name / "bar")
    found = evaluate(replace(request_for, synthetic=tmp_path / "one/defects", extent=replace(SMALL, steps=1, seeds=1)))
    assert set(found["fidelity"]) == {"defect"}
    assert found["counts"]["real_train"] == {"defect": 20, "normal": 3}


def test_categories_of_the_test_alone_make_one_of_all(request_for: EvaluateRequest, held: Path, tmp_path: Path) -> None:
    for name in ("defects", "masks"):
        (tmp_path / "apart" / name).mkdir(parents=True)
        (tmp_path / "apart" / name / "scrape").symlink_to(held / name / "bar")
    (tmp_path / "apart/normals").symlink_to(held / "normals")
    real, synthetic, _, _ = evaluation.read(replace(request_for, test=tmp_path / "apart"))
    assert evaluation._categories(real, synthetic) == ("defect",)


def test_large_sets_are_thinned_by_category() -> None:
    categories = ["a"] * 10 + ["b"] * 3 + ["normal"] * 9
    images = [LabeledImage(Path(str(i)), category) for i, category in enumerate(categories)]
    thinned = evaluation._thinned(images, replace(SMALL, samples=10, normals=4), np.random.default_rng(0))
    assert evaluation.counts(thinned) == {"a": 5, "b": 3, "normal": 4}
