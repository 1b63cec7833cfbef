"""The whole way through the real command line: photographs to a model, a model to datasets."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import defectgen
from defectgen import files
from defectgen.__main__ import main
from defectgen.imaging.compression import compressed_as, compression_of
from defectgen.imaging.images import encode_png, read_image, read_mask

ROOT = Path(defectgen.__file__).parents[1]
SAMPLES = ROOT / "examples/samples"
DATA = ROOT.parent / "shared/data"
SMALL = ["image_size=32", "width=8", "max_width=16", "c_channels=2", "style_dim=4", "batch_size=2"]


def environment() -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("DEFECTGEN_")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**ours, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, cwd: Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command: in an empty folder in a process of its own, else in this one, which takes three seconds less."""
    command = [*map(str, arguments)]
    if any(cwd.iterdir()):
        out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
        os.chdir(cwd)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                found = main(command)
        finally:
            os.chdir(before)
        done = subprocess.CompletedProcess(command, found, out.getvalue(), err.getvalue())
    else:
        done = subprocess.run(
            [sys.executable, "-m", "defectgen", *command], cwd=cwd, env=environment(), capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def manifest(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def test_samples_on_jpegs_have_their_compression(tmp_path: Path) -> None:
    """What is painted there could be told by its lack; on the same pixels as PNG files, there is none."""
    shutil.copytree(SAMPLES / "steel", tmp_path / "steel")
    (tmp_path / "plain").mkdir()
    for path in (tmp_path / "steel/normals").iterdir():
        files.write(tmp_path / "plain" / f"{path.stem}.png", encode_png(read_image(path).pixels))
    for normals, bound in ((tmp_path / "steel/normals", True), (tmp_path / "plain", False)):
        out = tmp_path / f"out-{normals.name}"
        run("compose", "steel/defects", normals, "-n", "6", "--seed", "1", "--out", out, cwd=tmp_path)
        for row in manifest(out):
            source = tmp_path / "steel/normals" / f"{Path(str(row['source'])).stem}.jpg"
            before, image = read_image(source).pixels, read_image(out / str(row["image"])).pixels
            of = compression_of(source)
            assert of is not None
            assert (before != image).any()
            again = np.abs(compressed_as(of, before, image).astype(int) - image)
            assert (np.quantile(again[before != image], 0.99) <= 1) == bound


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "dataset.json"  # which holds the command
    }


class TestTheModelThatShips:
    def test_makes_cracks_before_anyone_has_trained_anything(self, tmp_path: Path) -> None:
        done = run("synthesize", "-n", "6", "--category", "crack", cwd=tmp_path)
        assert "6 samples written" in done.stdout
        rows = manifest(tmp_path / "dataset")
        assert [row["category"] for row in rows] == ["crack"] * 6
        for row in rows:
            image = read_image(tmp_path / "dataset" / str(row["image"])).pixels
            source = read_image(Path(str(row["source"]))).pixels
            mask = read_mask(tmp_path / "dataset" / str(row["mask"]))
            assert image.shape == source.shape
            assert mask.any()
            assert (image != source).mean() < 0.1  # most of a photograph is untouched
            change = np.abs(image.astype(int) - source)
            assert change[mask].mean() > 10 * max(change[~mask].mean(), 0.01)

    def test_moves_defects_from_one_product_to_another(self, tmp_path: Path) -> None:
        source, target = SAMPLES / "steel/defects", SAMPLES / "ceramic/normals"
        given = ["--model", "dt-gan-samples", "--from", f"steel={source}", "--to", f"ceramic={target}", "-c", "spot"]
        run("transfer", *given, "-n", "4", "--style", "sampled", cwd=tmp_path)
        for row in manifest(tmp_path / "dataset"):
            reference = row["reference"]
            assert isinstance(reference, dict)
            assert Path(reference["file"]).parent == source / "spot"
            assert Path(str(row["source"])).parent == target
            assert row["product"] == "ceramic"
        guided = ["--from", f"steel={source}", "--style", str(source), "-c", "spot", "--out", "guided"]
        run("synthesize", "--model", "dt-gan-samples", "-n", "2", *guided, cwd=tmp_path)
        for row in manifest(tmp_path / "guided"):
            assert str(row["guides"]).startswith("from steel=")
            assert {"reference", "style"} <= row.keys()
            assert "prior" not in row

    def test_removes_real_defects(self, tmp_path: Path) -> None:
        """Those of categories that it does not know are skipped, and what makes new defects is refused."""
        shutil.copytree(SAMPLES / "steel/defects/spot", tmp_path / "mixed/spot")
        (tmp_path / "mixed/dent").mkdir()
        shutil.copy(next((SAMPLES / "steel/defects/spot").iterdir()), tmp_path / "mixed/dent/1.jpg")
        given = ["synthesize", "--model", "dt-gan-samples", "--restore", "mixed"]
        done = run(*given, "-n", "50", "--out", "restored", cwd=tmp_path, code=3)
        assert "not dent" in done.stderr
        rows = manifest(tmp_path / "restored")
        assert rows
        for row in rows:
            image = read_image(tmp_path / "restored" / str(row["image"])).pixels
            np.testing.assert_array_equal(image, read_image(tmp_path / "restored" / str(row["source"])).pixels)
            after = read_image(tmp_path / "restored" / str(row["restored"])).pixels
            mask = read_mask(tmp_path / "restored" / str(row["mask"]))
            change = np.abs(image.astype(int) - after)
            assert change[mask].mean() > 10 * max(change[~mask].mean(), 0.01)
        done = run(*given, "-n", "1", "--strength", "0.5", "--gate", "mixed", "--out", "b", cwd=tmp_path, code=2)
        assert done.stderr.endswith("--restore makes no defects: leave out --gate, --strength\n")

    def test_names_the_images_that_it_was_trained_on(self) -> None:
        """So that `evaluate` finds them in a test set: the normals of the samples, and none of their defects."""
        model = defectgen.load_model("dt-gan-samples", device="cpu")
        for product in model.task.products:
            assert {files.sha256(path) for path in (SAMPLES / product / "normals").iterdir()} <= set(model.trained_on)
            defects = {files.sha256(path) for path in (SAMPLES / product / "defects").rglob("*.jpg")}
            assert defects.isdisjoint(model.trained_on)

    def test_is_small_enough(self) -> None:
        models = list((ROOT / "examples/models").rglob("*.safetensors"))
        assert models
        assert all(model.stat().st_size <= 8_000_000 for model in models)

    def test_same_command_same_bytes_and_sample_k_is_one_picture(self, tmp_path: Path) -> None:
        common = ["synthesize", "--seed", "3", "--device", "cpu", "--quiet"]
        run(*common, "-n", "4", "--out", "a", "--workers", "1", cwd=tmp_path)
        run(*common, "-n", "4", "--out", "b", "--workers", "3", cwd=tmp_path)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        run(*common, "-n", "6", "--out", "c", "--batch-size", "3", cwd=tmp_path)
        assert manifest(tmp_path / "c")[:4] == manifest(tmp_path / "a")
        more = contents(tmp_path / "c")
        assert all(more[name] == data for name, data in contents(tmp_path / "a").items() if name.endswith(".png"))

    def test_killed_and_resumed_is_as_if_never_killed(self, tmp_path: Path) -> None:
        common = ["synthesize", "-n", "40", "--device", "cpu", "--batch-size", "4", "--quiet"]
        run(*common, "--out", "whole", cwd=tmp_path)
        command = [sys.executable, "-m", "defectgen", *common, "--out", "broken"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment()) as process:
            deadline = time.monotonic() + 100
            while not (tmp_path / "broken/manifest.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()
        assert len(manifest_lines(tmp_path / "broken")) < 40
        run(*common, "--out", "broken", "--resume", cwd=tmp_path)
        assert contents(tmp_path / "broken") == contents(tmp_path / "whole")

    @pytest.mark.parametrize(
        ("layout", "files"),
        [
            ("mvtec", ["steel/train/good/000000.png", "steel/test/spot", "steel/ground_truth/spot"]),
            ("coco", ["annotations/instances_train.json", "images/000000.png"]),
            ("yolo", ["data.yaml", "labels/train/000000.txt", "images/train/000000.png"]),
        ],
    )
    def test_other_layouts(self, tmp_path: Path, layout: str, files: list[str]) -> None:
        run("synthesize", "-n", "8", "-c", "spot", "--format", layout, "--quiet", cwd=tmp_path)
        for file in files:
            assert (tmp_path / "dataset" / file).exists()

    def test_other_photographs_keep_their_size_and_depth(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        pixels = (20_000 + np.add.outer(np.arange(50), np.arange(400)) * 9).astype(np.uint16)  # lower than a window
        (tmp_path / "mine/Prüfling 1.png").write_bytes(encode_png(pixels))
        run("synthesize", "-n", "2", "-c", "spot", "--normals", "steel=mine", cwd=tmp_path)
        for row in manifest(tmp_path / "dataset"):
            image = read_image(tmp_path / "dataset" / str(row["image"]))
            assert image.pixels.shape == (50, 400)
            assert image.depth == 16

    def test_a_flipped_bit_is_found(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "examples/models", tmp_path / "examples/models")
        shutil.copy(ROOT / "weights.toml", tmp_path)
        model = tmp_path / "examples/models/dt-gan-samples/model.safetensors"
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(data)
        done = run("synthesize", "-n", "1", "--model", "dt-gan-samples", cwd=tmp_path, code=5)
        assert "model.safetensors" in done.stderr
        assert not (tmp_path / "dataset").exists()


def manifest_lines(out: Path) -> list[bytes]:
    return (out / "manifest.jsonl").read_bytes().splitlines()


class TestTraining:
    def test_from_folders_to_a_model_in_weights_toml(self, tmp_path: Path) -> None:
        shutil.copytree(SAMPLES / "steel", tmp_path / "steel")
        (tmp_path / "steel/normals/broken.jpg").write_bytes((tmp_path / "steel/normals/000.jpg").read_bytes()[:-900])
        settings = [part for setting in SMALL for part in ("--set", setting)]
        train = ["train", "--method", "dt-gan", "steel/normals", "steel/defects", "--steps", "4", "--device", "cpu"]
        plan = run(*train, *settings, "--dry-run", "--json", cwd=tmp_path, code=3)
        document = json.loads(plan.stdout.splitlines()[-1])
        assert document["message_type"] == "plan"
        assert document["domains"] == ["normal", "crack", "scratch", "spot", "stain"]
        assert not (tmp_path / "runs").exists()
        done = run(*train, *settings, "--name", "m", cwd=tmp_path, code=3)
        assert "steel/normals/broken.jpg: truncated" in done.stderr
        assert "categories crack, scratch, spot, stain" in done.stdout
        assert (tmp_path / "runs/m/model.safetensors").is_file()
        assert 'trained_on = {steel = "steel/normals"}' in (tmp_path / "weights.toml").read_text()

    def test_what_cannot_be_done_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad/a.png").write_bytes(b"no")
        train = ["train", "--method", "dt-gan", "--device", "cpu"]
        cases: list[tuple[list[str | Path], int, str]] = [
            (["bad", SAMPLES / "steel/defects"], 4, "no usable normals"),
            ([SAMPLES / "steel/normals", "nowhere"], 4, "nowhere: no such folder"),
            ([SAMPLES / "steel/normals", SAMPLES / "steel/defects", "--set", "lr=fast"], 2, "--set lr"),
            ([SAMPLES / "steel/normals", SAMPLES / "steel/defects", "--device", "cuda:77"], 8, "--device cuda:77"),
        ]
        for arguments, code, words in cases:
            assert main([*train, *map(str, arguments)]) == code
            captured = capsys.readouterr()
            assert words in captured.err.splitlines()[-1]
            assert captured.out == ""
        assert not (tmp_path / "weights.toml").exists()


class TestCompose:
    def test_real_defects_onto_normals_with_no_model_at_all(self, tmp_path: Path) -> None:
        folders = SAMPLES / "steel/defects", SAMPLES / "steel/normals"
        done = run("compose", *folders, "-n", "9", "--per-image", "1:2", "--quiet", cwd=tmp_path)
        assert "9 samples written" in done.stdout
        rows = manifest(tmp_path / "dataset")
        assert {row["category"] for row in rows} == {"crack", "scratch", "spot", "stain"}
        for row in rows:
            image = read_image(tmp_path / "dataset" / str(row["image"])).pixels
            source = read_image(Path(str(row["source"]))).pixels
            mask = read_mask(tmp_path / "dataset" / str(row["mask"]))
            change = np.abs(image.astype(int) - source)
            assert change[mask].mean() > 10 * max(change[~mask].mean(), 0.01)

    def test_a_dataset_is_evaluated_on_photographs_that_it_was_not_made_of(self, tmp_path: Path) -> None:
        unshared = {"stain", "chip"}  # `evaluate` compares categories that all of them have

        def some(folder: str, names: list[str]) -> set[str]:
            images = sorted(name for name in names if Path(folder, name).is_file())
            return unshared | {*images[5:]}

        steel, ceramic = (
            shutil.copytree(SAMPLES / name, tmp_path / name, ignore=some) for name in ("steel", "ceramic")
        )
        # Bent ones are not copies.
        given: list[str | Path] = ["--from", steel / "defects", "--to", steel / "normals", "--vary", "0"]
        run("transfer", *given, "-n", "9", "--quiet", cwd=tmp_path)
        small = ["--quick", "--steps", "1", "--seeds", "1", "--share", "0.5"]
        done = run("evaluate", steel, "dataset", "--test", ceramic, *small, "--json", cwd=tmp_path)
        found = json.loads(done.stdout.splitlines()[-1])
        of = found["datasets"]["dataset"]
        assert of["counts"] == {"crack": 3, "scratch": 3, "spot": 3}
        assert of["mask_agreement"]["compared"] == 9
        assert of["mask_agreement"]["median_iou"] > 0.5
        assert of["memorisation"]["near_copies"] > 0
        assert (tmp_path / "report/report.html").stat().st_size > 20_000
        done = run("evaluate", ceramic, "dataset", "--test", steel, *small, "--out", "other", cwd=tmp_path, code=4)
        assert "test-set leakage: " in done.stderr
        assert not (tmp_path / "other").exists()

    def test_a_dcdganc_model_from_training_to_composed_images(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        settings = [
            part
            for setting in ("image_size=32", "width=8", "max_width=16", "batch_size=4", "pairs_first=0.98")
            for part in ("--set", setting)
        ]
        run(
            "train", "--method", "dcdganc", "--preset", "tiny", SAMPLES / "steel/normals", SAMPLES / "steel/defects",
            "--name", "c", "--steps", "150", "--device", "cpu", *settings, cwd=tmp_path,
        )  # fmt: skip
        run("synthesize", "--model", "c", "-n", "4", "-c", "spot", "-c", "spot:0.5,crack:0.5", cwd=tmp_path)
        rows = manifest(tmp_path / "dataset")
        assert {row["category"] for row in rows} <= {"spot", "spot0.5+crack0.5"}
        assert rows
        like = SAMPLES / "steel/defects/spot/000.jpg"
        run("synthesize", "--model", "c", "-n", "3", "--like", like, "--out", "variations", cwd=tmp_path)
        for row in manifest(tmp_path / "variations"):
            assert row["category"] == "spot"
            assert row["guides"] == f"from {like}, style own"
            assert [each["content"] for each in row["parameters"]["defects"]] == [str(like)]  # type: ignore[index]
        run(
            "synthesize",
            "--model",
            "c",
            "-n",
            "3",
            "-c",
            "spot",
            "--format",
            "patches",
            "--out",
            "patches",
            cwd=tmp_path,
        )
        for row in manifest(tmp_path / "patches"):
            assert "source" not in row
            assert max(read_mask(tmp_path / "patches" / str(row["mask"])).shape) <= 64
        for wrong, words, code in (
            (("--format", "patches", "--normals", SAMPLES / "steel/normals"), "leave out --normals", 2),
            (("--like", SAMPLES / "steel/normals/000.jpg"), "has no mask; put it beside the image", 4),
            (("--like", tmp_path / "none.png"), "no such file", 4),
            (("--like", like, "--from", SAMPLES / "steel/defects"), "give one of them", 2),
            (("--same-object", "--out", "other"), "makes no whole images", 2),
        ):
            assert main(["synthesize", "--model", "c", "-n", "1", *map(str, wrong)]) == code  # no process each
            assert words in capsys.readouterr().err
        run(
            "compose", "--model", "c", SAMPLES / "steel/normals", "-n", "3", "-c", "spot", "--region", "0,0,90,90",
            "--out", "composed", cwd=tmp_path,
        )  # fmt: skip
        for row in manifest(tmp_path / "composed"):
            mask = read_mask(tmp_path / "composed" / str(row["mask"]))
            assert not mask[90:].any()
            assert not mask[:, 90:].any()


class TestInspect:
    def test_an_isu_gan_model_from_training_to_a_report(self, tmp_path: Path) -> None:
        settings = [part for setting in ("image_size=32", "blocks=1", "batch_size=2") for part in ("--set", setting)]
        done = run(
            "train", "--method", "isu-gan", "--preset", "tiny", SAMPLES / "steel/normals", SAMPLES / "steel/defects",
            "--name", "i", "--steps", "20", "--device", "cpu", *settings, cwd=tmp_path,
        )  # fmt: skip
        assert "calibrated on" in done.stderr
        done = run("inspect", SAMPLES / "steel/defects/spot", "--model", "i", "--json", cwd=tmp_path)
        *images, summary = map(json.loads, done.stdout.splitlines())
        images = [each for each in images if each["message_type"] == "image"]
        assert len(images) == summary["inspected"] == len(list((SAMPLES / "steel/defects/spot").iterdir()))
        assert all(0 <= each["score"] <= 2 and each["threshold"] == images[0]["threshold"] for each in images)
        assert len((tmp_path / "report/report.csv").read_text().splitlines()) == len(images) + 1
        run("inspect", SAMPLES / "steel/normals", "--model", "i", "--threshold", "0", "--fail-on-defect", "--out", "b",
            cwd=tmp_path, code=9)  # fmt: skip
        run("synthesize", "--model", "i", "-n", "1", "--dry-run", cwd=tmp_path)


class TestDefectGAN:
    def test_from_labels_to_regions_and_restored_normals(self, tmp_path: Path) -> None:
        """Images with one category and with two, a few of them with masks."""
        rng = np.random.default_rng(0)
        for i in range(9):
            pixels = rng.integers(100, 120, (80, 96), np.uint8)
            path = tmp_path / (f"normals/{i}.png" if i < 3 else f"defects/{i}.png")
            mask = np.zeros(pixels.shape, np.uint8)
            if i >= 3:
                mask[30 : 36 + i, 20:60] = 255
                pixels[mask > 0] = 10
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_png(pixels))
            if i >= 6:
                (tmp_path / "masks").mkdir(exist_ok=True)
                (tmp_path / f"masks/{i}.png").write_bytes(encode_png(mask))
        labels = "".join(f"{i}.png,{('crack', 'rust', 'crack;rust')[i % 3]}\n" for i in range(3, 9))
        (tmp_path / "defects/labels.csv").write_text(labels)
        small = ("width=8", "max_width=16", "blocks=1", "batch_size=2", "critic_steps=2", "lr=2e-3")
        settings = [part for setting in small for part in ("--set", setting)]
        done = run(
            "train", "--method", "defect-gan", "--preset", "tiny", "normals", "defects", "--name", "d",
            "--steps", "30", "--device", "cpu", *settings, cwd=tmp_path,
        )  # fmt: skip
        assert "categories crack, rust" in done.stdout
        assert (tmp_path / "runs/d/previews/twins.jpg").is_file()
        made = ["synthesize", "--model", "d", "-n", "3", "--device", "cpu"]
        run(*made, "--region", "crack=10,10,24,24", "--region", "rust=50,40,30,30", "--restored", cwd=tmp_path)
        rows = manifest(tmp_path / "dataset")
        assert {row["category"] for row in rows} == {"crack+rust"}
        for row in rows:
            found = read_mask(tmp_path / "dataset" / str(row["mask"]))
            found[8:36, 8:36], found[38:72, 48:82] = False, False
            assert not found.any()
            assert (tmp_path / "dataset" / str(row["restored"])).is_file()
        run(*made, "-c", "crack+rust", "-c", "rust", "--out", "more", cwd=tmp_path)


class TestDFMGAN:
    def test_two_stages_in_one_command_and_the_second_alone_with_another_backbone(self, tmp_path: Path) -> None:
        small = [
            "width=4", "max_width=8", "match_width=4", "z_dim=8", "w_dim=8", "batch_size=2", "backbone_steps=6",
            "lambda_area=0",  # masks do not start empty
        ]  # fmt: skip
        settings = [part for setting in small for part in ("--set", setting)]
        train = ["train", "--method", "dfmgan", "--preset", "tiny", *settings, "--steps", "10", "--device", "cpu"]
        folders = SAMPLES / "steel/normals", SAMPLES / "steel/defects"
        run(*train, *folders, "--name", "all", cwd=tmp_path)
        assert (tmp_path / "runs/all/backbone.safetensors").is_file()
        done = run(*train, *folders, "-c", "spot", "--name", "spots", "--backbone", "all", cwd=tmp_path)
        assert "spots: 10 steps" in done.stdout
        steps = [json.loads(line)["step"] for line in (tmp_path / "runs/spots/metrics.jsonl").read_text().splitlines()]
        assert steps == [10]
        for normals, count in ((), 0), (("--normals", folders[0]), len(list(folders[0].iterdir()))):
            plan = run("synthesize", "-n", "4", "--model", "spots", *normals, "--dry-run", "--json", cwd=tmp_path)
            assert json.loads(plan.stdout)["normals"] == count
        run("synthesize", "-n", "4", "--model", "spots", "--normals", folders[0], cwd=tmp_path)
        for row in manifest(tmp_path / "dataset"):
            image = read_image(tmp_path / "dataset" / str(row["image"])).pixels
            assert image.shape == read_image(Path(str(row["source"]))).pixels.shape
        run("synthesize", "-n", "4", "--model", "spots", "--out", "triplets", cwd=tmp_path)
        assert {row["prior"] for row in manifest(tmp_path / "triplets")} == {"bank"}
        for row in manifest(tmp_path / "triplets"):
            image, normal = (read_image(tmp_path / "triplets" / str(row[key])).pixels for key in ("image", "normal"))
            assert image.shape[:2] == normal.shape[:2] == (64, 64)
            assert (image != normal).any()


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real photographs are not here")
class TestRealPhotographs:
    def test_tiles_and_roads_train_together(self, tmp_path: Path) -> None:
        tiles, roads = DATA / "magnetic-tile", DATA / "road-crack"
        settings = [part for setting in SMALL for part in ("--set", setting)]
        done = run(
            "train", "--method", "dt-gan", "--name", "real", "--steps", "2", "--device", "cpu", *settings,
            "--product", f"tile={tiles}/normals:{tiles}/defects",
            "--product", f"road={roads}/normals:{roads}/defects",
            cwd=tmp_path, code=3,
        )  # fmt: skip
        assert "on 797 images" in done.stderr
        assert done.stderr.count(" is empty") == 2
        assert "categories blowhole, break, crack, fray, uneven" in done.stdout

    def test_cracks_of_roads_onto_tiles(self, tmp_path: Path) -> None:
        done = run(
            "compose", DATA / "road-crack/defects", DATA / "magnetic-tile/normals", "-n", "12", "--json", cwd=tmp_path
        )
        assert json.loads(done.stdout.splitlines()[-1])["written"] >= 10

    def test_cracks_of_roads_are_transferred_onto_tiles_and_tell_their_reference(self, tmp_path: Path) -> None:
        road, tile = DATA / "road-crack", DATA / "magnetic-tile"
        laid_on = ["--scale", "0.4:1", "--crop", "0.4:1"]
        run("transfer", "--from", road / "defects", "--to", tile / "normals", *laid_on, "-n", "8", cwd=tmp_path)
        for row in manifest(tmp_path / "dataset"):
            parameters = row["parameters"]
            assert isinstance(parameters, dict)
            assert Path(parameters["defects"][0]["content"]).parent == road / "defects/crack"
            image = read_image(tmp_path / "dataset" / str(row["image"]))
            source = read_image(Path(str(row["source"])))
            assert image.pixels.shape == source.pixels.shape
            assert read_mask(tmp_path / "dataset" / str(row["mask"])).any()

    def test_roads_are_inspected(self, tmp_path: Path) -> None:
        """Three steps teach nothing; but all is read, repaired, compared and reported, at any size."""
        roads = DATA / "road-crack"
        run(
            "train", "--method", "isu-gan", "--preset", "tiny", roads / "normals", roads / "defects", "--name", "r",
            "--steps", "3", "--device", "cpu", cwd=tmp_path,
        )  # fmt: skip
        (tmp_path / "line").mkdir()
        for path in [*sorted((roads / "defects").glob("*/*"))[:2], *sorted((roads / "normals").iterdir())[:2]]:
            shutil.copy(path, tmp_path / "line")
        (tmp_path / "line/broken.jpg").write_bytes(b"no")
        done = run("inspect", "line", "--model", "r", "--json", cwd=tmp_path, code=3)
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (summary["inspected"], summary["errors"]) == (5, 1)

    def test_defects_are_painted_where_a_region_is(self, tmp_path: Path) -> None:
        tiles = DATA / "magnetic-tile"
        run(
            "train", "--method", "defect-gan", "--preset", "tiny", tiles / "normals", tiles / "defects",
            "-c", "blowhole", "--name", "t", "--steps", "2", "--device", "cpu", cwd=tmp_path,
        )  # fmt: skip
        made = ["synthesize", "--model", "t", "-n", "2", "--region", "0,0,80,80", "--device", "cpu"]
        done = run(*made, "--dry-run", "--json", cwd=tmp_path)
        assert json.loads(done.stdout.splitlines()[-1])["method"] == "defect-gan"
