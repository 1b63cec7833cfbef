"""`evaluate` on sets whose answers are known."""

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen import evaluation, files
from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation import EvaluateRequest, Extent, downstream, evaluate, verdicts
from defectgen.evaluation import _around as around
from defectgen.evaluation.data import LabeledImage, load_examples
from defectgen.evaluation.learning import SHARES, Guess, Learning
from defectgen.imaging.images import encode_png, read_image
from tests import browser

SMALL = Extent(steps=2, seeds=2, samples=24, normals=3, tested=6)


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
    return EvaluateRequest(real, (made,), tmp_path / "report", test=held, extent=SMALL, share=0.5, device="cpu")


@pytest.fixture
def one_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains fewer networks: one augmentation, so that none has to be chosen."""
    monkeypatch.setattr("defectgen.evaluation.learning.AUGMENTATIONS", ("traditional",))
    monkeypatch.setattr(Learning, "_choose_augmentation", lambda *_: "traditional")


def test_the_report_holds_every_part_in_both_forms(request_for: EvaluateRequest) -> None:
    stages = set()
    request_for = replace(request_for, extent=replace(SMALL, steps=1, tested=15))
    found = evaluate(request_for, lambda stage, _done, _total: stages.add(stage), cut_outs)
    assert stages == {"cut-outs", "fidelity", "networks"}
    assert found["counts"]["real_test"] == {"bar": 5, "disc": 5, "normal": 5}
    of = found["datasets"]["defects"]
    assert of["counts"] == {"bar": 6, "disc": 6}
    assert set(of["fidelity"]) == {"bar", "disc"}
    for name in ("swd", "lite0_kid", "lite0_precision", "lite0_recall", "lite0_variety"):
        assert {name, f"{name}_floor", f"{name}_cutouts"} <= set(of["fidelity"]["bar"])
    assert not {"fid", "kid", "clustered_lpips"} & set(of["fidelity"]["bar"])  # those are other networks' names
    assert of["mask_agreement"] is None  # no manifest names a source
    assert (of["traceable"], of["memorisation"]["of"]) == (False, 12)
    (of_shots,) = found["downstream"]
    assert of_shots["shots"] is None
    assert set(of_shots["sets"]) == {*downstream.AUGMENTATIONS, "defects", "defects alone"}
    for scores in of_shots["sets"].values():
        assert set(scores["scores"]) == {"balanced_accuracy", "f1", "ap", "mean_ap", "iou", "f1_pixels", "auroc"}
        assert all(0 <= value["mean"] <= 1 for value in scores["scores"].values())
        assert set(scores["categories"]) == {"bar", "disc"}
        assert len(set(scores["alarms"])) == 5  # all normals that are tested
        assert all(Path(name).parent.name == "normals" for name in scores["alarms"])
    sets, baseline = of_shots["sets"], of_shots["augmentation"]
    assert baseline in downstream.AUGMENTATIONS
    for of_task in of_shots["datasets"]["defects"]["tasks"].values():
        after, before = (sets[name]["scores"][of_task["decided_by"]]["mean"] for name in ("defects", baseline))
        assert of_task["gain"] == pytest.approx(after - before)
        assert of_task["low"] <= of_task["gain"] <= of_task["high"]
    assert json.loads((request_for.out / "report.json").read_text()) == json.loads(json.dumps(found))
    html = (request_for.out / "report.html").read_text()
    assert "http" not in html.replace("http-equiv", "")  # nothing is fetched
    assert html.count("data:image/jpeg;base64,") >= 4 + len(of["memorisation"]["worst"])
    assert "<svg" in html
    assert html.count("with the places of false alarms outlined") == 2  # without the dataset and with it
    assert 'alt=""' not in html
    assert "does not record its source images, so it was not fully checked for test-set leakage." in html
    assert [line.split(":")[0] for line in verdicts(found)][:2] == [
        f"defects, all real defects, {task}" for task in ("classification", "segmentation")
    ]


def cut_outs(defects: Any, normals: Any, num: int) -> list[Any]:
    """The real defects themselves."""
    examples = load_examples(list(defects)[:num], [defects[0].category])
    return [(each.x, each.mask) for each in examples]


@pytest.mark.usefixtures("one_augmentation")
def test_a_report_is_continued_and_never_overwritten_unasked(
    request_for: EvaluateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    train = downstream.train

    def counted(*arguments: Any, **settings: Any) -> Any:
        if len(trained) >= 3 and "stop" in flags:
            raise KeyboardInterrupt
        trained.append(1)
        return train(*arguments, **settings)

    flags = {"stop"}
    monkeypatch.setattr(downstream, "train", counted)
    request_for = replace(request_for, extent=replace(SMALL, steps=1))
    with pytest.raises(KeyboardInterrupt):
        evaluate(request_for)
    assert len(trained) == 3
    with pytest.raises(UsageError, match="a report already exists; continue with --resume"):
        evaluate(request_for)
    flags.clear()
    resumed = evaluate(replace(request_for, resume=True))
    assert len(trained) == 6  # each of three training sets with two seeds once
    whole = evaluate(replace(request_for, out=request_for.out.with_name("whole")))
    assert whole == resumed
    with pytest.raises(UsageError, match="belongs to other images or options"):
        evaluate(replace(request_for, resume=True, seed=1))


@pytest.mark.parametrize("name", ["results.json", "report.json", "report.html"])
def test_no_file_of_a_report_is_replaced_by_default(request_for: EvaluateRequest, name: str) -> None:
    request_for.out.mkdir(parents=True)
    (request_for.out / name).write_text("mine")
    with pytest.raises(UsageError, match="a report already exists"):
        evaluate(request_for)
    assert (request_for.out / name).read_text() == "mine"


@pytest.mark.usefixtures("one_augmentation")
def test_two_runs_with_a_seed_give_the_same_report(request_for: EvaluateRequest, tmp_path: Path) -> None:
    """Also of datasets that are compared, few shots, and a share that is chosen."""
    several = replace(request_for, shots=(2,), share=None)
    first = evaluate(replace(several, extent=replace(SMALL, steps=1, seeds=1), out=tmp_path / "a"))
    second = evaluate(replace(several, extent=replace(SMALL, steps=1, seeds=1), out=tmp_path / "b"))
    assert first == second
    assert (tmp_path / "a/report.html").read_bytes() == (tmp_path / "b/report.html").read_bytes()
    assert first["downstream"][0]["datasets"]["defects"]["share"] in SHARES


@pytest.mark.usefixtures("one_augmentation")
def test_shots_are_drawn_for_each_seed_and_are_the_same_for_all(
    request_for: EvaluateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[frozenset[bytes]]] = {}
    train = downstream.train

    def noted(training: Any, classes: int, plan: Any, seed: int, *rest: Any) -> Any:
        defects = frozenset(each.x.tobytes() for each in training.real if each.label)
        if defects:  # not the synthetic ones alone
            drawn.setdefault(seed, []).append(defects)
            counts = [sum(each.label == label for each in training.real) for label in (1, 2)]
            assert counts == [2, 2]
        return train(training, classes, plan, seed, *rest)

    monkeypatch.setattr(downstream, "train", noted)
    evaluate(replace(request_for, shots=(2,), extent=replace(SMALL, steps=1)))
    assert len(drawn) == 2
    assert all(len(set(each)) == 1 and len(each) == 2 for each in drawn.values())
    first, second = (each[0] for each in drawn.values())
    assert first != second


@pytest.mark.usefixtures("one_augmentation")
def test_a_dataset_of_more_real_defects_than_the_shots_is_noticed(
    request_for: EvaluateRequest, real: Path, made: Path, tmp_path: Path
) -> None:
    """By the manifest: two bars are within two shots, and are then among them; three are too many."""
    for used in (2, 3):
        folder = tmp_path / f"from{used}"
        rows = []
        for i in range(6):
            for name, kind in (("images", "defects"), ("masks", "masks")):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / f"{i}.png").write_bytes((made.parent / kind / f"bar/{i}.png").read_bytes())
            sha = files.sha256(real / f"defects/bar/{i % used}.png")
            defect = {"content": "x", "content_sha256": sha}
            rows.append({"index": i, "image": f"images/{i}.png", "mask": f"masks/{i}.png", "category": "bar",
                         "source_sha256": "0" * 64, "parameters": {"defects": [defect]}})  # fmt: skip
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        request = replace(request_for, synthetic=(folder,), shots=(2,), extent=replace(SMALL, steps=1, seeds=1))
        found = evaluate(replace(request, out=tmp_path / f"report{used}"))
        note = found["downstream"][0]["datasets"][folder.name].get("note")
        assert note == (
            None
            if used == 2
            else "from3 was made from more real defects than 2 shots: 3 of bar; its gain includes theirs"
        )
        assert ("more real defects" in "\n".join(verdicts(found))) == (used == 3)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return stand_in(monkeypatch)


def stand_in(patch: pytest.MonkeyPatch) -> list[Any]:
    """Instead of training: a score of 0.8, which falls by the list's first value times the share of synthetic defects,
    by 0.1 for all augmentations but the list's second value, and by the third value for all.
    """
    falls: list[Any] = [0.0, "traditional", 0.0]

    def train(training: Any, *_: Any) -> Any:
        return training

    def test(training: Any, examples: Any, categories: Any, _device: Any) -> dict[str, Any]:
        value = 0.8 - falls[0] * (training.share if training.synthetic else 0.0)
        value -= 0.0 if training.augmentation == falls[1] else 0.1
        value -= falls[2]
        of = {"recall": value, "ap": value - 0.1, "iou": value, "f1_pixels": value, "auroc": value}
        whole = dict.fromkeys(("balanced_accuracy", "f1", "ap", "mean_ap", "iou", "f1_pixels", "auroc"), value)
        return {
            **whole,
            "curve": [value] * 21,
            "alarms": [[i, 40, 50, value] for i in range(4)],
            "categories": dict.fromkeys(categories, of),
        }

    patch.setattr(downstream, "train", train)
    patch.setattr(downstream, "test", test)
    return falls


@pytest.mark.parametrize(("fall", "share"), [(0.2, 0.0), (-0.2, 0.5), (0.0, 0.0)])
def test_the_share_is_what_does_best_on_real_images_held_out(
    request_for: EvaluateRequest, scored: list[Any], fall: float, share: float
) -> None:
    """What does harm is not used, and the answer says so; nor is what makes no difference."""
    scored[0] = fall
    found = evaluate(replace(request_for, share=None, extent=replace(SMALL, seeds=6)))
    answer = found["downstream"][0]["datasets"]["defects"]
    assert answer["share"] == share
    for of_task in answer["tasks"].values():
        assert of_task["verdict"] == ("helps" if share else "do not use it")
    assert ("do not use it" in verdicts(found)[0]) == (share == 0)
    assert ("defects" in found["downstream"][0]["sets"]) == (share > 0)


def test_datasets_are_trained_and_judged_with_the_augmentation_that_suits_the_real_images(
    request_for: EvaluateRequest, scored: list[Any]
) -> None:
    scored[1] = "none"
    (of_shots,) = evaluate(replace(request_for, extent=replace(SMALL, seeds=6)))["downstream"]
    assert of_shots["augmentation"] == "none"
    means = {name: of["scores"]["mean_ap"]["mean"] for name, of in of_shots["sets"].items()}
    assert means == pytest.approx(
        {"none": 0.8, "traditional": 0.7, "mixing": 0.7, "defects": 0.8, "defects alone": 0.8}
    )
    for of_task in of_shots["datasets"]["defects"]["tasks"].values():
        assert (of_task["verdict"], of_task["gain"]) == ("no difference", pytest.approx(0))


@pytest.mark.parametrize(
    ("none", "mixing", "chosen"),
    [
        ([0.26, 0.26, 0.31], [0.21, 0.39, 0.33], "traditional"),  # a coin's choice: of five tiles each, as measured
        ([0.28, 0.37, 0.27], [0.18, 0.52, 0.36], "traditional"),  # the same with other tiles: on the test, mixing hurt
        ([0.26, 0.26, 0.31], [0.31, 0.55, 0.35], "mixing"),
        ([0.35, 0.58, 0.38], [0.31, 0.55, 0.35], "none"),
        ([0.21, 0.46, 0.23], [0.21, 0.46, 0.23], "traditional"),
        (None, None, "traditional"),
    ],
)
def test_an_augmentation_has_to_be_better_by_more_than_chance(
    monkeypatch: pytest.MonkeyPatch, none: list[float] | None, mixing: list[float] | None, chosen: str
) -> None:
    scores = None if none is None else {"none": none, "traditional": [0.21, 0.46, 0.23], "mixing": mixing}
    monkeypatch.setattr(Learning, "_cross_validate", lambda *_: scores)
    assert Learning.__new__(Learning)._choose_augmentation("5", []) == chosen


def test_networks_that_learnt_nothing_are_no_answer(request_for: EvaluateRequest, scored: list[Any]) -> None:
    """Whatever the difference, also where cross-validation leaves the dataset out."""
    scored[:] = [0.01, "traditional", 0.78]
    found = evaluate(replace(request_for, share=None, extent=replace(SMALL, seeds=6)))
    for of_task in found["downstream"][0]["datasets"]["defects"]["tasks"].values():
        assert of_task["verdict"] == "cannot tell: the networks learnt nothing"
    lines = verdicts(found)
    assert "classification: cannot tell: the networks learnt nothing (balanced accuracy" in lines[0]
    assert lines[2].startswith("  classification: balanced accuracy 0.020 is no better than guessing, 0.333; train")
    assert not any("gets" in line or "cross-validation" in line for line in lines)
    html = (request_for.out / "report.html").read_text()
    assert html.count('<p class="verdict cannot">') == 2


@pytest.mark.parametrize(
    ("before", "after", "share", "verdict"),
    [
        (0.3, 0.32, 0.5, "cannot tell: the networks learnt nothing"), (0.3, 0.9, 0.5, "helps"),
        (0.9, 0.3, 0.5, "hurts"), (0.3, None, 0.0, "cannot tell: the networks learnt nothing"),
        (0.9, None, 0.0, "do not use it"),
    ],
)  # fmt: skip
def test_one_score_above_guesses_is_an_answer(before: float, after: float | None, share: float, verdict: str) -> None:
    learning = Learning.__new__(Learning)
    learning._guesses = dict.fromkeys(("balanced_accuracy", "mean_ap"), Guess(0.25, 0.4))
    learning._categories, learning._fixed_share = ["bar"], share

    def rows(value: float) -> list[dict[str, Any]]:
        of = {"recall": value, "ap": value}
        return [{"balanced_accuracy": value, "mean_ap": value, "categories": {"bar": of}}] * 4

    by_set = {"traditional": rows(before), **({} if after is None else {"made": rows(after)})}
    answer = learning._compare("made", "traditional", share, by_set, None)
    assert {of["verdict"] for of in answer["tasks"].values()} == {verdict}
    assert any("bar gets" in reason for reason in answer["reasons"]) == (verdict in ("helps", "hurts"))
    assert ("gain" in answer["tasks"]["classification"]) == (share > 0)


def test_a_share_of_0_that_was_asked_for_is_not_said_to_be_chosen(
    request_for: EvaluateRequest, scored: list[Any]
) -> None:
    lines = verdicts(evaluate(replace(request_for, share=0.0)))
    assert "  --share 0 leaves it out" in lines
    assert not any("cross-validation" in line for line in lines)


def plate(rng: np.random.Generator, category: str, x: int) -> Any:
    """A part on a dark backdrop with a disc at column x: a notch of the backdrop's brightness, or a bright spot."""
    pixels = rng.normal(30, 4, (128, 128))
    pixels[:, 50:] += 100
    mask = np.hypot(*np.ogrid[-64 : 128 - 64, -x : 128 - x]) < 10
    mask[:, :50] &= x < 50
    mask &= category != "normal"
    pixels[mask] = rng.normal(30 if category == "notch" else 230, 4, int(mask.sum()))
    shift = rng.integers(128)
    return tuple(np.roll(each, shift, axis=0).astype(np.uint8) for each in (np.clip(pixels, 0, 255), mask * 255))


@pytest.mark.usefixtures("one_augmentation")
def test_a_category_in_impossible_places_gets_worse_by_name(tmp_path: Path) -> None:
    """Real notches lie on the part's edge, synthetic ones beside the part. Networks are trained."""
    rng = np.random.default_rng(0)
    for folder, count, of_notch in (("real", 5, 50), ("held", 6, 50), ("shifted", 12, 20)):
        for category, x in (("normal", 90), ("notch", of_notch), ("spot", 90)):
            for i in range(count):
                pixels, mask = plate(rng, category, x)
                normal = category == "normal"
                for kind, values in (("normals", pixels),) if normal else (("defects", pixels), ("masks", mask)):
                    path = tmp_path / folder / kind / ("" if normal else category) / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode_png(values))
    found = evaluate(
        EvaluateRequest(
            tmp_path / "real", (tmp_path / "shifted/defects",), tmp_path / "report", test=tmp_path / "held",
            extent=Extent(steps=30, seeds=1, samples=40, normals=10, tested=15), share=0.9, device="cpu",
        )
    )  # fmt: skip
    lines = verdicts(found)
    assert found["downstream"][0]["datasets"]["defects"]["categories"]["notch"]["ap"]["gain"] < -0.3
    assert any(line.startswith("  notch may get worse: average precision") for line in lines), lines


def test_gray_and_color_images_are_evaluated_in_gray_with_their_cut_outs(
    request_for: EvaluateRequest, scored: list[Any], real: Path, tmp_path: Path
) -> None:
    shutil.copytree(real, tmp_path / "mixed")
    for name in ("normals/0.png", "defects/bar/0.png"):
        gray = read_image(real / name).pixels
        (tmp_path / "mixed" / name).write_bytes(encode_png(np.stack([gray, gray, gray // 2], axis=2).astype(np.uint8)))
    found = evaluate(replace(request_for, real=tmp_path / "mixed"), cut_outs=cut_outs)
    assert "lite0_kid_cutouts" in found["datasets"]["defects"]["fidelity"]["bar"]


@pytest.fixture(scope="module")
def worse(real: Path, held: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The result and the page of a dataset that hurts."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)[0] = 0.4
        out = tmp_path_factory.mktemp("worse")
        extent = replace(SMALL, seeds=6)
        request = EvaluateRequest(real, (made,), out / "report", test=held, extent=extent, share=0.5, device="cpu")
        return evaluate(request), out / "report/report.html"


def test_what_gets_worse_is_said_by_name(worse: tuple[dict[str, Any], Path]) -> None:
    lines = verdicts(worse[0])
    assert lines[0].startswith(
        "defects, all real defects, classification: hurts (balanced accuracy 0.600 with it, 0.800 without"
    )
    assert "  bar gets worse: recall 0.80 -> 0.60" in lines
    assert "  disc gets worse: average precision 0.70 -> 0.50" in lines
    assert "bar gets worse: recall 0.80 -&gt; 0.60" in worse[1].read_text()


def test_the_report_has_a_table_by_category(worse: tuple[dict[str, Any], Path]) -> None:
    html = worse[1].read_text()
    (table,) = re.findall(r"<h3>defects, by category</h3>\s*<div class=\"wide\"><table>(.*?)</table>", html)
    first, *others = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("</tr>")[:-1]]
    assert first == [
        "category", "test images", "recall without", "recall with", "recall gain",
        "average precision without", "average precision with", "average precision gain",
    ]  # fmt: skip
    for category, row in zip(("bar", "disc"), others, strict=True):
        assert row[:4] == [category, "2", "0.800", "0.600"]
        assert row[4].startswith("-0.200 ± ")
        assert row[5:7] == ["0.700", "0.500"]


def test_pictures_of_the_report_are_outlined_and_described(worse: tuple[dict[str, Any], Path]) -> None:
    html = worse[1].read_text()
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/jpeg;base64,([^"]*)">', html)
    assert len(pictures) == 6 + 4 + 2
    for alt, data in pictures:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        plain, outlined = np.split(np.asarray(pixels).astype(int), 2)
        assert (outlined[..., 2] - outlined[..., 0] > 80).sum() > 50  # red
        assert not (plain[..., 2] - plain[..., 0] > 80).any()
        assert "outlined" in alt
    alts = " ".join(alt for alt, _ in pictures)
    assert "bar, synthetic: windows around defects" in alts
    assert re.search(r"The synthetic \d\.png beside the real \d\.png, similarity \d\.\d\d", alts)
    for label in ("recall: share of defect pixels found", "precision of pixels", "0.25", "0.75"):
        assert f">{label}</text>" in html


def test_the_report_fits_a_phone_in_a_browser(worse: tuple[dict[str, Any], Path]) -> None:
    script = """
      const lines = [...document.querySelectorAll("svg polyline")].map(each => getComputedStyle(each).stroke);
      return [document.documentElement.scrollWidth <= innerWidth,
        [...document.images].every(each => each.complete && each.naturalWidth > 0 && each.alt),
        new Set(lines).size].join(" ");
    """
    assert browser.after(worse[1], script, width=500) == "true true 5"


def test_datasets_and_shots_are_compared_in_one_report(
    request_for: EvaluateRequest, scored: list[Any], made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made.parent, tmp_path / "second")
    several = (made.parent / "defects", tmp_path / "second/defects")
    found = evaluate(replace(request_for, synthetic=several, shots=(1, 3, None)))
    assert list(found["datasets"]) == [str(folder.resolve()) for folder in several]  # two folders of one name
    assert [of["shots"] for of in found["downstream"]] == [1, 3, None]
    html = (request_for.out / "report.html").read_text()
    assert "Gain against the number of real defects" in html
    assert html.count("With 3 real defects of each category") == 1


def test_the_test_set_itself_is_refused(request_for: EvaluateRequest, held: Path) -> None:
    with pytest.raises(BadInputError, match="test-set leakage"):
        evaluate(replace(request_for, synthetic=(held / "defects",)))


@pytest.mark.usefixtures("one_augmentation")
def test_copies_of_the_training_are_counted(request_for: EvaluateRequest, real: Path) -> None:
    found = evaluate(replace(request_for, synthetic=(real / "defects",), extent=replace(SMALL, steps=1, seeds=1)))
    copied = found["datasets"]["defects"]["memorisation"]
    assert copied["near_copies"] == copied["of"] == 20
    for pair in copied["worst"]:
        assert pair["synthetic"] == pair["real"]
        assert pair["similarity"] > 0.99


def test_without_a_test_set_some_are_put_aside(request_for: EvaluateRequest) -> None:
    found = evaluation.read(replace(request_for, test=None))
    assert evaluation.counts(found.real.train) == {"bar": 6, "disc": 6, "normal": 7}
    assert evaluation.counts(found.real.test) == {"bar": 4, "disc": 4, "normal": 5}
    assert found.left_out == 0


@pytest.mark.usefixtures("one_augmentation")
def test_categories_that_are_not_told_apart_become_one(
    request_for: EvaluateRequest, made: Path, tmp_path: Path, real: Path
) -> None:
    for name in ("defects", "masks"):
        (tmp_path / "one" / name).mkdir(parents=True)
        (tmp_path / "one" / name / "any").symlink_to(made.parent / name / "bar")
    found = evaluate(
        replace(request_for, synthetic=(tmp_path / "one/defects",), extent=replace(SMALL, steps=1, seeds=1))
    )
    assert set(found["datasets"]["defects"]["fidelity"]) == {"defect"}
    assert found["counts"]["real_train"] == {"defect": 20, "normal": 3}


def test_categories_of_the_test_alone_make_one_of_all(request_for: EvaluateRequest, held: Path, tmp_path: Path) -> None:
    for name in ("defects", "masks"):
        (tmp_path / "apart" / name).mkdir(parents=True)
        (tmp_path / "apart" / name / "scrape").symlink_to(held / name / "bar")
    (tmp_path / "apart/normals").symlink_to(held / "normals")
    found = evaluation.read(replace(request_for, test=tmp_path / "apart"))
    assert evaluation._categories(found) == ("defect",)


def test_a_dataset_called_like_a_training_set_is_none() -> None:
    folders = [Path("a/mixing"), Path("b"), Path("b alone"), Path("c")]
    assert evaluation._names(folders) == [str(folders[0].resolve()), "b", str(folders[2].resolve()), "c"]


def test_large_sets_are_thinned_by_category() -> None:
    categories = ["a"] * 10 + ["b"] * 3 + ["normal"] * 9
    images = [LabeledImage(Path(str(i)), category) for i, category in enumerate(categories)]
    thinned = evaluation._thinned(images, 10, 4, np.random.default_rng(0))
    assert evaluation.counts(thinned) == {"a": 5, "b": 3, "normal": 4}


@pytest.mark.parametrize(("shape", "at"), [((90, 120), (3, 118)), ((90, 120), (45, 60)), ((40, 200), (39, 0))])
def test_windows_of_false_alarms_show_what_is_there(shape: tuple[int, int], at: tuple[int, int]) -> None:
    """Edges of images are where most lie: a window beyond an edge would be mirrored, and look like something else."""
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    window, mask = around(image, *at)
    assert (window.shape, mask.shape) == ((1, 64, 64), (64, 64))
    top, left = (min(max(0, each - 32), max(0, side - 64)) for each, side in zip(at, shape, strict=True))
    middle = np.argwhere(mask).mean(axis=0) + np.array([top, left])
    assert np.abs(middle - at).max() <= 6
    height, width = (min(64, side) for side in shape)
    assert np.array_equal(window[:, :height, :width], image[:, top : top + height, left : left + width])
