import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectgen import files, ranks
from defectgen.errors import BadInputError, ExitCode, OutOfMemoryError, StoppedError, UsageError, WeightsError
from defectgen.folders import Catalog, ProductFolders, read_catalog
from defectgen.imaging.images import encode_png
from defectgen.methods.base import GenerateBatch
from defectgen.methods.dcdganc import DCDGANcConfig
from defectgen.methods.dfmgan import DFMGANConfig
from defectgen.methods.dt_gan import DTGAN, DTGANConfig
from defectgen.methods.isu_gan import ISUGANConfig
from defectgen.models import checkpoint
from defectgen.models.model import load
from defectgen.training import initial, trainer
from defectgen.training.run import Initial, Run, TrainSpec, inputs
from defectgen.training.trainer import Progress, train

CONFIG = DTGANConfig(
    image_size=32, width=8, max_width=16, c_channels=2, latent_dim=4, style_dim=4, batch_size=2, steps=12
)
SETTINGS = ["image_size=32", "width=8", "max_width=16", "c_channels=2", "style_dim=4", "batch_size=2"]


@pytest.fixture(scope="module")
def catalog(source: ProductFolders) -> Catalog:
    return read_catalog([source])


@pytest.fixture
def request_for(source: ProductFolders, catalog: Catalog, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(name: str = "run", **changes: object) -> TrainSpec:
        base = TrainSpec("dt-gan", name, tmp_path / name, catalog, (source,), CONFIG, device="cpu")
        return replace(base, **changes)  # type: ignore[arg-type]

    return make


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def stop_after(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return on_step


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


class TestTrain:
    def test_writes_all_files_of_the_run_folder(self, request_for: Callable[..., TrainSpec]) -> None:
        request = request_for()
        seen: list[Progress] = []
        trained = train(request, seen.append)
        assert trained.steps == 12
        assert trained.stopped is None
        assert [progress.step for progress in seen] == list(range(1, 13))
        assert json.loads((request.run / "config.json").read_text())["config"]["steps"] == 12
        assert [row["step"] for row in metrics(request.run)] == [10]
        assert list((request.run / "previews").glob("*.jpg"))
        assert {path.name for path in request.run.iterdir()} == {
            "checkpoint.safetensors", "config.json", "index.html", "metrics.jsonl", "model.safetensors", "previews",
        }  # fmt: skip

    def test_the_model_file_holds_what_loading_needs(self, request_for: Callable[..., TrainSpec]) -> None:
        trained = train(request_for())
        model = load(trained.model, torch.device("cpu"))
        method = model.method
        assert method.task.domains == ("normal", "spot")
        assert method.task == trained.task
        assert method.config == CONFIG
        assert model.steps == 12

    def test_the_model_file_lists_all_training_images(self, request_for: Callable[..., TrainSpec]) -> None:
        request = request_for(config=CONFIG.model_copy(update={"steps": 1}))
        _, saved = checkpoint.load(train(request).model)
        assert saved["trained_on"] == sorted(files.sha256(sample.path) for sample in request.catalog.images)

    def test_a_failure_is_reported_once_twenty_rows_show_it(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Mapping[str, float]] = []

        def diagnose(_self: DTGAN, losses: Mapping[str, float]) -> str | None:
            seen.append(losses)
            return "the losses are odd"

        step = DTGAN.training_step

        def counting(
            self: DTGAN, batch: Any, number: int, progress: float, rng: torch.Generator
        ) -> dict[str, torch.Tensor]:
            return {**step(self, batch, number, progress, rng), "number": torch.tensor(float(number + 1))}

        monkeypatch.setattr(DTGAN, "diagnose", diagnose, raising=False)
        monkeypatch.setattr(DTGAN, "training_step", counting)
        diagnoses: list[tuple[int, str | None]] = []
        monkeypatch.setattr(trainer, "LOG_EVERY", 1)
        train(
            request_for(config=CONFIG.model_copy(update={"steps": 21})),
            lambda progress: diagnoses.append((progress.step, progress.diagnosis)),
        )
        assert [step for step, diagnosis in diagnoses if diagnosis] == [20, 21]
        assert [losses["number"] for losses in seen] == [10.5, 11.5]  # means of the last twenty

    def test_same_seed_same_bytes_whatever_the_workers(self, request_for: Callable[..., TrainSpec]) -> None:
        one = train(request_for("one", workers=1, seed=4))
        two = train(request_for("two", workers=3, seed=4))
        other = train(request_for("other", seed=5))
        assert one.model.read_bytes() == two.model.read_bytes()
        assert one.model.read_bytes() != other.model.read_bytes()

    def test_a_method_that_learns_patches_is_trained_and_resumed(self, request_for: Callable[..., TrainSpec]) -> None:
        config = DCDGANcConfig(image_size=32, width=4, max_width=8, latent_dim=4, batch_size=2, steps=12)
        whole = train(request_for("whole", method="dcdganc", config=config))
        broken = request_for("broken", method="dcdganc", config=config)
        assert train(broken, stop_after(5)).steps == 5
        resumed = train(replace(broken, resume=True))
        assert resumed.model.read_bytes() == whole.model.read_bytes()
        model = load(resumed.model, torch.device("cpu"))
        assert model.info.learns == "patches"
        assert model.task.scales == {"part": {"spot": 1.0}}

    def test_a_method_of_pairs_has_one_category(self, request_for: Callable[..., TrainSpec], catalog: Catalog) -> None:
        config = ISUGANConfig(image_size=32, width=16, blocks=1, involution_kernel=3, batch_size=2, steps=3)
        one = train(request_for("one", method="isu-gan", config=config))
        assert one.task.domains == ("normal", "spot")
        other = [s.model_copy(update={"category": "dent"}) for s in catalog.images if s.category == "spot"]
        several = catalog.model_copy(update={"images": (*catalog.images, *other)})
        both = train(request_for("both", method="isu-gan", config=config, catalog=several))
        assert both.task.domains == ("normal", "defect")

    def test_a_method_that_needs_masks_reports_missing_ones(
        self, request_for: Callable[..., TrainSpec], catalog: Catalog
    ) -> None:
        bare = catalog.model_copy(update={"images": tuple(s.model_copy(update={"mask": None}) for s in catalog.images)})
        config = DCDGANcConfig(image_size=32)
        request = request_for(method="dcdganc", config=config, catalog=bare)
        with pytest.raises(BadInputError, match=r"3 of 3 defect images have no mask \(first: .*spot/0\.png\)"):
            train(request)
        assert not request.run.exists()

    def test_stopped_and_resumed_equals_uninterrupted(self, request_for: Callable[..., TrainSpec]) -> None:
        config = CONFIG.model_copy(update={"steps": 24})
        whole = request_for("whole", config=config)
        train(whole)
        broken = request_for("broken", config=config)
        stopped = train(broken, stop_after(7))
        assert (stopped.steps, stopped.stopped) == (7, ExitCode.SIGTERM)
        train(replace(broken, resume=True), stop_after(15))
        finished = train(replace(broken, resume=True))
        assert finished.steps == 24
        assert metrics(broken.run) == metrics(whole.run)
        assert len(metrics(whole.run)) == 2
        for name in ("model", "checkpoint"):
            ours, _ = checkpoint.load(broken.run / f"{name}.safetensors")
            theirs, _ = checkpoint.load(whole.run / f"{name}.safetensors")
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    def test_metrics_after_the_checkpoint_are_dropped_and_repeated(self, request_for: Callable[..., TrainSpec]) -> None:
        request = request_for(config=CONFIG.model_copy(update={"steps": 20}))
        train(request, stop_after(8))
        with (request.run / "metrics.jsonl").open("a") as file:  # the state after a kill later than the checkpoint
            file.write('{"step": 10, "adv": 99}\n{"step": 2')
        train(replace(request, resume=True))
        assert [row["step"] for row in metrics(request.run)] == [10, 20]
        assert metrics(request.run)[0]["adv"] != 99

    def test_a_run_is_overwritten_only_on_request(self, request_for: Callable[..., TrainSpec]) -> None:
        train(request_for())
        with pytest.raises(UsageError, match="--resume.*--overwrite.*--name"):
            train(request_for())
        train(request_for(overwrite=True))
        assert [row["step"] for row in metrics(request_for().run)] == [10]

    def test_a_run_can_be_resumed_from_the_first_moment(self, request_for: Callable[..., TrainSpec]) -> None:
        """A signal before the first step says --resume, also before there is a folder."""
        whole = train(request_for("whole"))
        assert train(request_for("none", resume=True)).model.read_bytes() == whole.model.read_bytes()
        begun = request_for("begun", resume=True)
        files.write(begun.run / "config.json", (request_for("whole").run / "config.json").read_bytes())
        assert train(begun).model.read_bytes() == whole.model.read_bytes()
        (begun.run / "checkpoint.safetensors").unlink()  # only the model is left, which is not started over
        with pytest.raises(WeightsError, match="no checkpoint to resume; start again with --overwrite"):
            train(begun)
        with pytest.raises(UsageError, match="a run exists"):
            train(replace(begun, resume=False))

    def test_resuming_with_another_configuration_names_the_difference(
        self, request_for: Callable[..., TrainSpec]
    ) -> None:
        train(request_for())
        with pytest.raises(UsageError, match=r"lr was 0\.0001 and is 0\.5"):
            train(request_for(resume=True, config=CONFIG.model_copy(update={"lr": 0.5})))
        with pytest.raises(UsageError, match="seed was 0 and is 3"):
            train(request_for(resume=True, seed=3))

    def test_stopped_before_the_first_step_leaves_no_model(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer, "_stop_signals", lambda: nullcontext([ExitCode.SIGTERM]))
        with pytest.raises(StoppedError, match="before the first step") as caught:
            train(request_for())
        assert caught.value.code == ExitCode.SIGTERM
        assert not (request_for().run / "model.safetensors").exists()

    def test_a_signal_while_ranks_agree_counts_when_they_agree_next(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rank that ended at once would leave the others waiting for its gradients."""
        codes: list[float] = []

        def largest(*values: float) -> list[float]:
            codes.append(values[1])
            if len(codes) == 3:
                signal.raise_signal(signal.SIGTERM)
            return list(values)

        monkeypatch.setattr(ranks, "largest", largest)
        trained = train(request_for())
        assert (trained.steps, trained.stopped, codes) == (3, ExitCode.SIGTERM, [0, 0, 0, ExitCode.SIGTERM])

    def test_a_time_limit_before_the_first_step_is_told(self, request_for: Callable[..., TrainSpec]) -> None:
        whole = train(request_for("whole"))
        with pytest.raises(UsageError, match="over before the first step; give more, with --resume"):
            train(request_for(seconds=1e-9))
        assert train(request_for(resume=True)).model.read_bytes() == whole.model.read_bytes()

    def test_a_time_limit_ends_it(self, request_for: Callable[..., TrainSpec]) -> None:
        trained = train(request_for(seconds=0.5, config=CONFIG.model_copy(update={"steps": 100_000})))
        assert 1 <= trained.steps < 1000

    def test_schedules_run_their_whole_course_within_a_time_limit(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also over a run that is stopped and resumed: the seconds of both count."""
        seen: list[tuple[int, float]] = []
        step = DTGAN.training_step

        def noted(
            self: DTGAN, batch: Any, number: int, progress: float, rng: torch.Generator
        ) -> dict[str, torch.Tensor]:
            seen.append((number, progress))
            return step(self, batch, number, progress, rng)

        monkeypatch.setattr(DTGAN, "training_step", noted)
        now = iter(range(100_000))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
        request = request_for(config=CONFIG.model_copy(update={"steps": 100_000}), seconds=60.0)
        train(request, stop_after(8))
        assert 0 < seen[-1][1] < 0.8
        train(replace(request, resume=True))
        numbers, progress = zip(*seen, strict=True)
        assert list(numbers) == list(range(len(seen)))
        assert list(progress) == sorted(progress)
        assert progress[0] < 0.1
        assert 0.8 < progress[-1] < 1
        assert max(np.diff(progress)) < 0.2
        again = train(replace(request, resume=True))  # its time is used up
        assert again.steps == len(seen) == numbers[-1] + 1

    def test_schedules_follow_the_steps_without_a_limit(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[float] = []
        step = DTGAN.training_step

        def noted(
            self: DTGAN, batch: Any, number: int, progress: float, rng: torch.Generator
        ) -> dict[str, torch.Tensor]:
            seen.append(progress)
            return step(self, batch, number, progress, rng)

        monkeypatch.setattr(DTGAN, "training_step", noted)
        train(request_for(config=CONFIG.model_copy(update={"steps": 4})))
        assert seen == [0, 0.25, 0.5, 0.75]

    def test_out_of_memory_names_the_next_batch_size(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def exhausted(*_: object) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(DTGAN, "training_step", exhausted)
        with pytest.raises(OutOfMemoryError, match="--batch-size 2; try --batch-size 1"):
            train(request_for())

    def test_a_loss_that_is_not_a_number_stops_training(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DTGAN, "training_step", lambda *_: {"adv": torch.tensor(float("nan"))})
        message = "step 10: the loss adv is nan: training diverged; restart with a lower --set lr="
        with pytest.raises(UsageError, match=message):
            train(request_for())


class TestInitial:
    """Runs that start from a trained model."""

    @pytest.fixture
    def first(self, request_for: Callable[..., TrainSpec]) -> Initial:
        return Initial("first", train(request_for("first", config=CONFIG.model_copy(update={"steps": 2}))).model)

    def test_it_starts_from_the_weights_of_the_model(
        self, request_for: Callable[..., TrainSpec], first: Initial
    ) -> None:
        one = CONFIG.model_copy(update={"steps": 1, "lr": 1e-8, "lr_mapping": 1e-8})
        trained = train(request_for(config=one, init=first, seed=9))
        (now, record), (before, _) = checkpoint.load(trained.model), checkpoint.load(first.file)
        assert all(torch.allclose(now[name], value, atol=1e-6) for name, value in before.items())
        config = json.loads((trained.model.parent / "config.json").read_text())
        assert record["init"] == config["init"]
        assert (record["init"]["model"], record["init"]["fresh"]) == ("first", False)

    def test_it_is_deterministic_and_resumes_to_the_same_bits_without_the_model(
        self, request_for: Callable[..., TrainSpec], first: Initial, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where the first steps are those of fresh discriminators alone."""
        monkeypatch.setattr(initial, "_ALONE", 0.6)
        first.file.with_name("checkpoint.safetensors").unlink()
        config = CONFIG.model_copy(update={"steps": 4})
        whole = train(request_for("whole", config=config, init=first)).model.read_bytes()
        assert whole == train(request_for("again", config=config, init=first)).model.read_bytes()
        request = request_for("parts", config=config, init=first)
        train(request, stop_after(1))
        first.file.unlink()
        resumed = train(replace(request, init=None, resume=True))
        assert resumed.model.read_bytes() == whole

    def test_what_the_model_was_trained_on_counts_as_trained_on(
        self, request_for: Callable[..., TrainSpec], first: Initial, catalog: Catalog, tmp_path: Path
    ) -> None:
        path = tmp_path / "old.safetensors"
        tensors, saved = checkpoint.load(first.file)
        checkpoint.save(path, tensors, {**saved, "trained_on": ["0" * 64]})
        request = request_for(init=Initial("old", path), config=CONFIG.model_copy(update={"steps": 1}))
        own = {image[3] for image in inputs(catalog)}
        assert {"0" * 64, *own} <= set(load(train(request).model, torch.device("cpu")).trained_on)

    def test_a_run_that_began_otherwise_is_not_resumed(
        self, request_for: Callable[..., TrainSpec], first: Initial
    ) -> None:
        train(request_for(), stop_after(1))
        with pytest.raises(UsageError, match="cannot resume, init was None and is .*'first'"):
            train(request_for(init=first, resume=True))


class TestInputs:
    """A resumed run trains on what it began with, and `trained_on` names all that any step saw."""

    FEW, MORE = (CONFIG.model_copy(update={"steps": steps}) for steps in (1, 2))

    @pytest.fixture
    def mine(self, source: ProductFolders, tmp_path: Path) -> ProductFolders:
        shutil.copytree(source.normals.parent, tmp_path / "photographs")
        return ProductFolders(
            product="part", normals=tmp_path / "photographs/normals", defects=tmp_path / "photographs/defects"
        )

    def change(self, folder: Path, how: str) -> str:
        """Change the photographs: the name of the first file that the message has."""
        match how:
            case "image":
                shutil.copy(folder / "defects/spot/1.png", folder / "defects/spot/0.png")
                return "spot/0.png or its mask has changed"
            case "mask":
                mask = np.zeros((48, 64), np.uint8)
                mask[5:9, 5:9] = 255
                (folder / "masks/spot/1.png").write_bytes(encode_png(mask))
                return "spot/1.png or its mask has changed"
            case "missing":
                (folder / "normals/2.png").unlink()
                return "normals/2.png is missing"
            case "new":
                shutil.copy(folder / "normals/0.png", folder / "normals/9.png")
                return "normals/9.png is new"
            case _:
                (folder / "defects/spot/0.png").rename(folder / "defects/spot/5.png")
                (folder / "masks/spot/0.png").rename(folder / "masks/spot/5.png")
                return "spot/0.png is missing"

    def test_an_image_may_have_a_folder_of_masks(
        self, request_for: Callable[..., TrainSpec], mine: ProductFolders
    ) -> None:
        """As in MVTec LOCO AD. A change of any of them is noticed."""
        assert mine.defects is not None
        masks = mine.defects.parent / "masks/spot"
        for path in [*masks.iterdir()]:
            (masks / path.stem).mkdir()
            path.rename(masks / path.stem / "000.png")
        request = request_for(catalog=read_catalog([mine]), config=self.FEW)
        train(request)
        changed = request_for(catalog=read_catalog([mine]), config=self.MORE, resume=True)
        assert train(changed).steps == 2
        shutil.copy(masks / "0/000.png", masks / "0/001.png")
        with pytest.raises(UsageError, match=r"spot/0\.png or its mask has changed"):
            train(changed)

    @pytest.mark.parametrize("how", ["image", "mask", "missing", "new", "renamed"])
    @pytest.mark.parametrize("version", ["this", "older"])
    def test_a_change_is_refused(
        self, request_for: Callable[..., TrainSpec], mine: ProductFolders, how: str, version: str
    ) -> None:
        request = request_for(catalog=read_catalog([mine]), config=self.FEW)
        train(request)
        before = checkpoint.load(request.run / "model.safetensors")[1]["trained_on"]
        if version == "older":  # which knows the SHA-256 of the images alone
            tensors, saved = checkpoint.load(request.run / "checkpoint.safetensors")
            del saved["inputs"]
            checkpoint.save(request.run / "checkpoint.safetensors", tensors, saved)
        words = self.change(mine.normals.parent, how)
        again = replace(request, catalog=read_catalog([mine]), resume=True, config=self.MORE)
        if version == "older" and how in ("mask", "new", "renamed"):
            assert set(before) <= set(checkpoint.load(train(again).model)[1]["trained_on"])
            return
        if version == "older":
            words = "an image has changed, is missing, or is new"
        with pytest.raises(UsageError, match=f"cannot resume, .*{words} since .*--name, or restart with --overwrite"):
            train(again)
        train(replace(again, resume=False, overwrite=True))

    def test_files_that_have_only_moved_are_the_same(
        self, request_for: Callable[..., TrainSpec], mine: ProductFolders, tmp_path: Path
    ) -> None:
        request = request_for(catalog=read_catalog([mine]), config=self.FEW)
        train(request)
        mine.normals.parent.rename(tmp_path / "moved")
        moved = ProductFolders(product="part", normals=tmp_path / "moved/normals", defects=tmp_path / "moved/defects")
        assert train(replace(request, catalog=read_catalog([moved]), resume=True, config=self.MORE)).steps == 2


class TestFolder:
    def test_leftovers_of_a_killed_run_go(self, request_for: Callable[..., TrainSpec]) -> None:
        request = request_for(config=TestInputs.FEW)
        leftovers = [request.run / f"{folder}.a.x8j2k1q9.defectgen-tmp" for folder in ("", "previews/")]
        for flag in ("", "resume", "overwrite"):
            for path in leftovers:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(1000))
            train(replace(request, resume=flag == "resume", overwrite=flag == "overwrite"))
            assert not any(path.exists() for path in leftovers)

    def test_people_keep_their_files(self, request_for: Callable[..., TrainSpec]) -> None:
        request = request_for(config=TestInputs.FEW)
        train(request)
        mine = [request.run / name for name in ("notes.txt", "previews/best.jpg", "previews/1.jpg", ".model.a1.tmp")]
        for path in mine:
            path.write_text("mine")
        train(replace(request, overwrite=True))
        assert all(path.read_text() == "mine" for path in mine)

    @pytest.mark.parametrize("config", [None, "{", '{"model_type": "bert"}', "[" * 100_000, "\xff"])
    @pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
    def test_a_folder_of_someone_else_is_not_taken(
        self, request_for: Callable[..., TrainSpec], flags: dict[str, bool], config: str | None
    ) -> None:
        request = request_for(**flags)
        (request.run / "previews").mkdir(parents=True)
        (request.run / "previews/0000001.jpg").write_text("mine")
        if config is not None:
            (request.run / "config.json").write_text(config, encoding="latin-1")
        with pytest.raises(UsageError, match="not empty, and not a run of defectgen; choose another --name"):
            train(request)
        assert (request.run / "previews/0000001.jpg").read_text() == "mine"

    @pytest.mark.parametrize("name", ["previews", "metrics.jsonl"])
    @pytest.mark.parametrize("flag", ["resume", "overwrite"])
    def test_nothing_is_written_through_a_link(
        self, request_for: Callable[..., TrainSpec], tmp_path: Path, name: str, flag: str
    ) -> None:
        request = request_for()
        train(request, stop_after(10))
        (request.run / name).rename(tmp_path / "other")
        (request.run / name).symlink_to(tmp_path / "other")
        before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
        with pytest.raises(BadInputError, match=f"{name}: is a link"):
            train(replace(request, resume=flag == "resume", overwrite=flag == "overwrite"))
        assert {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()} == before

    def test_an_overwritten_run_does_not_keep_the_backbone_of_another(
        self, request_for: Callable[..., TrainSpec]
    ) -> None:
        request = request_for(config=TestInputs.FEW)
        train(request)
        (request.run / "backbone.safetensors").write_bytes(b"of another method")
        train(replace(request, overwrite=True))
        assert train(replace(request, resume=True, config=TestInputs.MORE)).steps == 2

    @pytest.mark.parametrize("step", [4, 6])
    def test_a_preview_that_a_kill_prevented_is_made(
        self, request_for: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """It comes after the checkpoint of its step: an early one, and that of the end."""
        preview = Run.preview

        def killed(self: Run, batch: Any, number: int, seed: int) -> Any:
            if number == step:
                raise KeyboardInterrupt
            return preview(self, batch, number, seed)

        monkeypatch.setattr(trainer, "_FIRST_PREVIEW", 4)
        config = CONFIG.model_copy(update={"steps": 6})
        train(request_for("whole", config=config))
        monkeypatch.setattr(Run, "preview", killed)
        with pytest.raises(KeyboardInterrupt):
            train(request_for("broken", config=config))
        monkeypatch.setattr(Run, "preview", preview)
        train(request_for("broken", config=config, resume=True))
        whole, broken = (
            {path.name: path.read_bytes() for path in (request_for(name).run / "previews").iterdir()}
            for name in ("whole", "broken")
        )
        assert broken == whole
        assert {"0000004.jpg", "0000006.jpg"} <= whole.keys()

    @pytest.mark.parametrize("line", ["{", "[]", '{"step": "a"}', "{}", "\xff", "[" * 100_000])
    def test_damaged_metrics_are_named_with_their_line(self, request_for: Callable[..., TrainSpec], line: str) -> None:
        request = request_for()
        train(request, stop_after(10))
        good = (request.run / "metrics.jsonl").read_text()
        (request.run / "metrics.jsonl").write_text(good + line + "\n" + good, encoding="latin-1")
        with pytest.raises(BadInputError, match=r"metrics\.jsonl: line 2 cannot be read; delete this line"):
            train(replace(request, resume=True))

    def test_something_else_in_place_of_the_checkpoint(self, request_for: Callable[..., TrainSpec]) -> None:
        request = request_for(config=TestInputs.FEW)
        shutil.copy(train(request).model, request.run / "checkpoint.safetensors")
        with pytest.raises(WeightsError, match=r"checkpoint\.safetensors: not a checkpoint .*--overwrite"):
            train(replace(request, resume=True))
        train(replace(request, overwrite=True))

    def test_a_damaged_configuration_is_written_again(self, request_for: Callable[..., TrainSpec]) -> None:
        """Nothing depends on it while there is a checkpoint."""
        request = request_for()
        train(request, stop_after(2))
        good = (request.run / "config.json").read_bytes()
        (request.run / "config.json").write_bytes(b"\xff")
        train(replace(request, resume=True))
        assert (request.run / "config.json").read_bytes() == good


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trains_and_resumes_on_a_gpu(request_for: Callable[..., TrainSpec]) -> None:
    request = request_for(device="cuda", config=CONFIG.model_copy(update={"steps": 20}))
    train(request, stop_after(8))
    trained = train(replace(request, resume=True))
    assert trained.steps == 20
    assert all(np.isfinite(value) for value in trained.losses.values())
    method = load(trained.model, torch.device("cuda")).method
    x = torch.zeros(2, 1, 32, 32, device="cuda")
    y = torch.ones(2, dtype=torch.long, device="cuda")
    assert torch.isfinite(method.generate(GenerateBatch(x, y, [torch.Generator()] * 2)).x).all()


class TestCommandLine:
    def start(self, source: ProductFolders, run: Path, *more: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "defectgen", "train", "--method", "dt-gan", "--preset", "tiny"]
        command += [
            str(source.normals),
            str(source.defects),
            "--device",
            "cpu",
            "--name",
            "r",
            "--out",
            str(run),
        ]
        command += ["--weights", str(run / "weights.toml")]
        for setting in SETTINGS:
            command += ["--set", setting]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, *more], text=True, stdout=-1, stderr=-1, env=environment)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_saves_and_names_resume(
        self, source: ProductFolders, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        with self.start(source, tmp_path, "--steps", "100000") as process:
            wait_for(tmp_path / "r/checkpoint.safetensors")
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert "--resume" in err
        assert "Traceback" not in err
        _, saved = checkpoint.load(tmp_path / "r/checkpoint.safetensors")
        assert saved["step"] > 0


class TestTwoStages:
    CONFIG = DFMGANConfig(
        image_size=64, batch_size=2, steps=8, backbone_steps=5, width=4, max_width=8, match_width=4, z_dim=8, w_dim=8
    )

    @pytest.fixture
    def staged(self, request_for: Callable[..., TrainSpec]) -> Callable[..., TrainSpec]:
        def make(name: str = "staged", **changes: object) -> TrainSpec:
            return request_for(name, **{"method": "dfmgan", "config": self.CONFIG, **changes})

        return make

    def test_the_backbone_is_saved_and_starts_another_model(self, staged: Callable[..., TrainSpec]) -> None:
        first = staged("first")
        trained = train(first)
        assert trained.steps == 8
        kept, saved = checkpoint.load(first.run / "backbone.safetensors")
        assert saved["method"] == "dfmgan"
        model, _ = checkpoint.load(trained.model)
        names = [name for name in kept if name.startswith("G.backbone")]
        assert names
        assert all(torch.equal(kept[name], model[name]) for name in names)  # stage 2 does not change it

        seen: list[Progress] = []
        second = staged("second", backbone=first.run / "backbone.safetensors", seed=1)
        train(second, seen.append)
        assert [progress.step for progress in seen] == [6, 7, 8]
        again, _ = checkpoint.load(second.run / "model.safetensors")
        assert all(torch.equal(kept[name], again[name]) for name in names)
        assert not torch.equal(model["G.to_mask.weight"], again["G.to_mask.weight"])
        assert (second.run / "backbone.safetensors").is_file()

    def test_the_backbone_of_other_categories(self, staged: Callable[..., TrainSpec], catalog: Catalog) -> None:
        train(staged("first"))
        two = tuple(
            sample.model_copy(update={"category": "hole"}) if sample.path.name == "1.png" and sample.mask else sample
            for sample in catalog.images
        )
        backbone = staged("first").run / "backbone.safetensors"
        trained = train(staged("second", catalog=catalog.model_copy(update={"images": two}), backbone=backbone))
        assert trained.task.domains == ("normal", "hole", "spot")
        _, saved = checkpoint.load(backbone)
        assert set(trained.task.scales["part"].values()) == set(saved["task"]["scales"]["part"].values())

    def test_a_run_with_another_runs_backbone_is_resumed_at_its_scale(
        self, staged: Callable[..., TrainSpec], catalog: Catalog
    ) -> None:
        """The backbone has another scale than the images of this run would have."""
        train(staged("first"))
        kept, saved = checkpoint.load(staged("first").run / "backbone.safetensors")
        saved["task"]["scales"] = {"part": {"spot": 0.5}}
        backbone = staged("second").run.with_name("halved.safetensors")
        checkpoint.save(backbone, kept, saved)
        assert train(staged("second", backbone=backbone), stop_after(7)).stopped is ExitCode.SIGTERM
        resumed = train(staged("second", resume=True))
        assert (resumed.steps, resumed.task.scales) == (8, {"part": {"spot": 0.5}})

    def test_a_backbone_that_does_not_fit_is_refused(self, staged: Callable[..., TrainSpec]) -> None:
        train(staged("first"))
        backbone = staged("first").run / "backbone.safetensors"
        wider = self.CONFIG.model_copy(update={"width": 8, "max_width": 16})
        with pytest.raises(UsageError, match=r"backbone.safetensors: has width 4, but this run needs 8"):
            train(staged("second", config=wider, backbone=backbone))

    def test_a_time_limit_is_divided_between_the_stages(
        self, staged: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = iter(range(10_000))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
        long = self.CONFIG.model_copy(update={"steps": 1600, "backbone_steps": 1000})
        seen: list[Progress] = []
        train(staged("timed", config=long, seconds=24.0), seen.append)
        steps = [progress.step for progress in seen]
        before, after = [step for step in steps if step < 1000], [step for step in steps if step > 1000]
        assert 1 <= len(before) <= len(steps)
        assert after
        assert (staged("timed").run / "backbone.safetensors").is_file()

    @pytest.mark.parametrize("step", [3, 6])
    def test_stopped_and_resumed_in_either_stage(self, staged: Callable[..., TrainSpec], step: int) -> None:
        whole = train(staged("whole"))
        assert train(staged("parts"), stop_after(step)).stopped is ExitCode.SIGTERM
        resumed = train(staged("parts", resume=True))
        expected, result = (checkpoint.load(trained.model)[0] for trained in (whole, resumed))
        assert all(torch.equal(expected[name], result[name]) for name in expected)
