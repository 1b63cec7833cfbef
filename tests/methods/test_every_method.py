"""Tests of every method in the table: it trains, resumes, generates what its row says, and refuses the rest."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch

from defectgen import methods
from defectgen.errors import BadInputError, UsageError, WeightsError
from defectgen.folders import ProductFolders
from defectgen.imaging.images import DecodedImage, encode_png
from defectgen.imaging.windows import Box
from defectgen.inspection.reconstruction import NetworkRepair
from defectgen.methods import Control, MethodInfo
from defectgen.methods.base import Batch, GenerateBatch, Method, Repairer, Restorer, Staged, Task
from defectgen.models.model import build, load, save_half
from defectgen.pipelines.synthesize import Folder, SynthesizeRequest, TransferRequest, synthesize, transfer
from defectgen.pipelines.train import TrainJob, TrainRequest, TrainResult
from defectgen.synthesis import generated, pasted
from defectgen.synthesis.pasted import Region
from defectgen.training.trainer import Progress

STEPS = 4
NAMES = methods.names()
CONTROLS: tuple[Control, ...] = get_args(Control)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> ProductFolders:
    """Twelve normals and three defects of each of two categories, 72 x 80 pixels."""
    folder = tmp_path_factory.mktemp("part")
    rng = np.random.default_rng(0)
    for category, count in (("normals", 12), ("dent", 3), ("spot", 3)):
        for i in range(count):
            coarse = cv2.resize(rng.normal(130, 20, (5, 5)), (80, 72), interpolation=cv2.INTER_CUBIC)
            pixels = np.clip(coarse + rng.normal(0, 4, (72, 80)), 0, 255).astype(np.uint8)
            mask = np.zeros((72, 80), np.uint8)
            if category != "normals":
                at, axes = (30 + 6 * i, 36), (9, 5) if category == "dent" else (5, 5)
                cv2.ellipse(mask, at, axes, 0, 0, 360, 255, -1)
                pixels[mask > 0] = 30 if category == "spot" else 230
            where = folder / ("normals" if category == "normals" else f"defects/{category}")
            for path, image in ((where / f"{i}.png", pixels), (folder / f"masks/{category}/{i}.png", mask)):
                if mask.any() or path.parent == where:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode_png(image))
    return ProductFolders(product="part", normals=folder / "normals", defects=folder / "defects")


def smallest(name: str) -> int:
    return methods.info(name).load().Config.sizes[0]


def request_of(row: MethodInfo, part: ProductFolders, out: Path, **changes: Any) -> TrainRequest:
    settings = {"image_size": str(smallest(row.name)), "batch_size": "2"}
    if len(row.stages) > 1:
        settings["backbone_steps"] = str(STEPS // 2)
    return TrainRequest(
        **{
            "method": row.name, "sources": (part,), "preset": "tiny", "settings": settings, "steps": STEPS,
            "name": "m", "out": out, "weights": out / "weights.toml", "device": "cpu", **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(part: ProductFolders, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrainResult]:
    """Trains a model of a method, once per method."""
    made: dict[str, TrainResult] = {}

    def make(name: str) -> TrainResult:
        if name not in made:
            out = tmp_path_factory.mktemp(name)
            made[name] = TrainJob(request_of(methods.info(name), part, out)).run()
        return made[name]

    return make


@pytest.fixture(autouse=True)
def _everything_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep invisible defects: after four steps of training, defects are hardly visible."""
    monkeypatch.setattr(generated, "visible", lambda *_: True)
    monkeypatch.setattr(pasted, "visible", lambda *_: True)


@pytest.mark.parametrize("name", NAMES)
def test_the_row_matches_the_class(name: str) -> None:
    row = methods.info(name)
    cls: type[Method] = row.load()
    assert tuple(cls.presets) == row.presets
    assert issubclass(cls, Repairer) == row.repairs
    assert issubclass(cls, Restorer) == row.restores
    assert hasattr(cls, "take_backbone") == (len(row.stages) > 1)
    for preset in row.presets:
        assert row.configure(preset, {"batch_size": "7"}).batch_size == 7
        with pytest.raises(UsageError, match=r"--set nonsense: not a setting of .*; it has .*image_size"):
            row.configure(preset, {"nonsense": "1"})


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, trained: Callable[[str], TrainResult]) -> None:
    result, row = trained(name), methods.info(name)
    assert result.steps == STEPS
    assert result.losses == {} or all(np.isfinite(value) for value in result.losses.values())
    assert result.categories == (("defect",) if row.learns == "pairs" else ("dent", "spot"))
    assert (result.threshold is not None) == row.repairs
    model = load(result.model, torch.device("cpu"))
    assert (model.info, model.steps, model.threshold) == (row, STEPS, result.threshold)
    assert isinstance(model.method, Staged) == (len(row.stages) > 1)
    assert (result.model.with_name("backbone.safetensors").is_file()) == (len(row.stages) > 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_training_resumes_to_the_same_bits(
    name: str, at: int, part: ProductFolders, tmp_path: Path, trained: Callable[[str], TrainResult]
) -> None:
    request = request_of(methods.info(name), part, tmp_path)

    def stop(progress: Progress) -> None:
        if progress.step == at:
            signal.raise_signal(signal.SIGTERM)

    assert TrainJob(request).run(stop).steps == at
    resumed = TrainJob(replace(request, resume=True)).run()
    assert resumed.model.read_bytes() == trained(name).model.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_changes_the_networks_and_their_state_suffices(name: str, trained: Callable[[str], TrainResult]) -> None:
    """Another object can continue from `networks.state`."""
    first, second = (load(trained(name).model, torch.device("cpu")).method for _ in range(2))
    for network in first.networks.modules.values():
        network.train()
    first.networks.train_only(*first.networks.optimizers)
    side = first.config.image_size
    channels = 1 + first.config.draws_masks
    x = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    domains = len(first.task.domains)
    masks = torch.zeros(2, domains - 1, side, side)
    masks[:, :, 8:20, 8:20] = 1
    y, p = torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    batch = Batch(x, y, p, x.flip(3), y, p, masks, masks, x, torch.ones(2), torch.full((2, 3), 0.5))
    before = {key: value.clone() for key, value in first.networks.state().items()}
    losses = first.training_step(batch, 1, 0.5, torch.Generator().manual_seed(2))
    assert all(torch.isfinite(value) for value in losses.values())
    after = first.networks.state()
    assert any(not torch.equal(value, before[key]) for key, value in after.items() if key in before)
    second.networks.load_state({key: value.clone() for key, value in after.items()})
    for key, value in second.networks.state().items():
        assert torch.equal(value, after[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_window_is_the_same_alone_and_in_a_batch(name: str, trained: Callable[[str], TrainResult]) -> None:
    method = load(trained(name).model, torch.device("cpu")).method
    side = method.config.image_size
    x = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = torch.ones(3, dtype=torch.long)

    def rngs() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in range(3)]

    together = method.generate(GenerateBatch(x, y, rngs())).x
    assert together.shape == x.shape
    assert torch.isfinite(together).all()
    for i, rng in enumerate(rngs()):
        alone = method.generate(GenerateBatch(x[i : i + 1], y[:1], [rng])).x[0]
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-4)  # a hundredth of a gray level


def normals(row: MethodInfo, part: ProductFolders) -> tuple[Folder, ...]:
    return ((None, part.normals),) if row.makes == "image" else ()


def synthesize_request(result: TrainResult, **changes: Any) -> SynthesizeRequest:
    given = {"num": 3, "model": result.name, "weights": result.weights, "device": "cpu", **changes}
    return SynthesizeRequest(**given)


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_whatever_the_batch_and_the_workers(
    name: str, part: ProductFolders, trained: Callable[[str], TrainResult]
) -> None:
    request = synthesize_request(trained(name), normals=normals(methods.info(name), part))
    first, second = (
        [
            (sample.index, sample.provenance, sample.image.tobytes(), sample.mask.tobytes())
            for sample in synthesize(replace(request, batch_size=batch_size, workers=workers))
        ]
        for batch_size, workers in ((1, 1), (3, 2))
    )
    assert first == second


def controlled(control: Control, result: TrainResult, part: ProductFolders, tmp_path: Path) -> Any:
    """Samples with a control; raises UsageError if the method does not support it."""
    row = methods.info(load(result.model, torch.device("cpu")).info.name)
    assert part.defects is not None
    mask = np.zeros((72, 80), np.bool_)
    mask[20:60, 20:60] = True
    several = result.categories * 2
    request = synthesize_request(result, normals=normals(row, part))
    match control:
        case "region":
            return synthesize(replace(request, regions=((None, Region(box=Box(10, 10, 50, 50), name="box")),)))
        case "mask":
            return synthesize(replace(request, regions=((None, Region(mask=mask, name="mask")),)))
        case "mixture":
            return synthesize(replace(request, categories=(f"{several[0]}:0.5,{several[1]}:0.5",)))
        case "union":
            return synthesize(replace(request, categories=("+".join(several[:2]),)))
        case "object":
            return synthesize(replace(request, normals=(), same_object=True, truncation=0.7))
        case "reference" | "style":
            return transfer(
                TransferRequest(
                    num=3, to=(("part", part.normals),), model=result.name, weights=result.weights, device="cpu",
                    source=(("part", part.defects),) if control == "reference" else (),
                    style="sampled" if control == "style" else "own",
                )
            )  # fmt: skip


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", NAMES)
def test_it_supports_the_controls_of_its_row_and_refuses_the_rest(
    name: str, control: Control, part: ProductFolders, tmp_path: Path, trained: Callable[[str], TrainResult]
) -> None:
    row = methods.info(name)
    if control in row.controls:
        samples = list(controlled(control, trained(name), part, tmp_path))
        keys = {"region": "regions", "mask": "regions", "mixture": "mixture", "reference": "reference"}
        for sample in samples:
            record = sample.provenance.model_dump(exclude_unset=True)
            if control in keys and not (row.pastes and keys[control] == "regions"):
                assert keys[control] in record
            assert control != "union" or sample.category == "dent+spot"
        return
    if row.learns == "pairs" and control in ("mixture", "union"):
        pytest.skip("it has one category")
    with pytest.raises(UsageError) as refused:
        list(controlled(control, trained(name), part, tmp_path))
    text = str(refused.value)
    assert "\n" not in text
    assert name in text
    assert any(other in text for other in methods.which(lambda each: control in each.controls))


@pytest.mark.parametrize("name", NAMES)
def test_its_output_matches_its_row(name: str, part: ProductFolders, trained: Callable[[str], TrainResult]) -> None:
    row, result = methods.info(name), trained(name)
    for sample in synthesize(synthesize_request(result)):
        assert sample.image.shape == ((smallest(name),) * 2 if row.makes == "image" else (72, 80))
        assert (sample.normal is not None) == (row.makes == "image")
        assert sample.provenance.method == name
    if row.restores:
        for sample in synthesize(synthesize_request(result, restored=True)):
            assert sample.restored is not None
            assert sample.restored.shape == sample.image.shape
    else:
        with pytest.raises(UsageError, match=rf"{name} cannot restore .* \(--restored, --restore\)"):
            synthesize(synthesize_request(result, restored=True))
    if row.repairs:
        pixels = np.full((40, 70), 120, np.uint8)
        assert NetworkRepair(result.model, "cpu")(Path("a"), DecodedImage(pixels)).shape == (40, 70)
    else:
        with pytest.raises(WeightsError, match=f"a model of {name} cannot repair images; use one of"):
            NetworkRepair(result.model, "cpu")


@pytest.mark.parametrize("name", ["defect-gan", "isu-gan"])
def test_what_is_painted_depends_on_the_tones_and_has_the_colors_of_the_task(name: str) -> None:
    row = methods.info(name)
    categories = ["dent", "spot"][: 1 if row.learns == "pairs" else 2]
    task = Task(
        domains=("normal", *categories), products=("a",), channels=3,
        scales={"a": dict.fromkeys(categories, 1.0)}, hues=((3**-0.5,) * 3,),
    )  # fmt: skip
    method = build(name, row.configure("tiny", {"image_size": "32"}), task, torch.device("cpu"), seed=1)
    for module in method.networks.modules.values():
        for parameter in module.parameters():
            if not parameter.any():  # networks begin with no change
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    coarse = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.6 - 0.3
    x = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").repeat(1, 3, 1, 1)
    a, tones = torch.zeros(1, len(categories), 32, 32), torch.zeros(1, 1, 32, 32)
    a[:, 0, 10:20, 4:28] = 1
    tones[:, :, 14:16, 4:28] = -1

    def painted(tones: torch.Tensor | None) -> torch.Tensor:
        rngs = [torch.Generator().manual_seed(0)]
        return method.generate(GenerateBatch(x, torch.ones(1).long(), rngs, a=a, tones=tones)).x - x

    change = painted(tones)
    assert (change - painted(None)).abs().max() > 1e-3
    assert torch.equal(painted(None), painted(torch.zeros_like(tones)))
    assert change.abs().max() > 0.01
    torch.testing.assert_close(change, change.mean(dim=1, keepdim=True).expand_as(change), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_it_requires_masks_only_if_its_row_says_so(name: str, part: ProductFolders, tmp_path: Path) -> None:
    row = methods.info(name)
    assert part.defects is not None
    shutil.copytree(part.defects, tmp_path / "defects")
    bare = part.model_copy(update={"defects": tmp_path / "defects"})
    request = request_of(row, bare, tmp_path, steps=2)
    if row.needs_masks:
        with pytest.raises(BadInputError, match="no mask"):
            TrainJob(request).run()
    else:
        assert TrainJob(request).run().steps == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_shared_only_between_models_with_stages(
    name: str, part: ProductFolders, tmp_path: Path, trained: Callable[[str], TrainResult]
) -> None:
    row, result = methods.info(name), trained(name)
    request = request_of(row, part, tmp_path, backbone=result.name, weights=result.weights, name="shares")
    if len(row.stages) > 1:
        job = TrainJob(replace(request, out=result.model.parents[1]))
        assert job.run().steps == STEPS
    else:
        with pytest.raises(UsageError, match=f"--backbone m: {name} has no backbone to share"):
            TrainJob(request)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_starts_from_the_weights_of_a_model(
    name: str, part: ProductFolders, tmp_path: Path, trained: Callable[[str], TrainResult]
) -> None:
    """With fresh weights of another seed, the networks would be far away."""
    result, row = trained(name), methods.info(name)
    steps = 3 if len(row.stages) > 1 else 1
    job = TrainJob(request_of(row, part, tmp_path, steps=steps, seed=5, init=str(result.model)))
    made = load(job.run().model, torch.device("cpu"))
    before = load(result.model, torch.device("cpu")).method.networks.averaged
    fresh = build(name, made.method.config, made.task, torch.device("cpu"), 5).networks.averaged

    def apart(networks: dict[str, torch.nn.Module]) -> float:
        pairs = [(made.method.networks.averaged[key].parameters(), each.parameters()) for key, each in networks.items()]
        return sum(float((a - b).detach().abs().sum()) for pair in pairs for a, b in zip(*pair, strict=True))

    assert apart(before) < 0.3 * apart(fresh)
    assert set(load(result.model, torch.device("cpu")).trained_on) <= set(made.trained_on)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_for_shipping_makes_the_same_but_for_rounding(
    name: str, tmp_path: Path, trained: Callable[[str], TrainResult]
) -> None:
    save_half(trained(name).model, tmp_path / "half.safetensors")
    side = smallest(name)
    x = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    full, half = (
        load(path, torch.device("cpu"))
        .method.generate(
            GenerateBatch(x, torch.ones(2, dtype=torch.long), [torch.Generator().manual_seed(i) for i in (1, 2)])
        )
        .x
        for path in (trained(name).model, tmp_path / "half.safetensors")
    )
    assert not torch.equal(full, half)
    assert float((full - half).abs().mean()) < 2 / 255  # less than a gray level
