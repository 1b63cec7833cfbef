from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Barrier
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import Sample
from defectgen.errors import BadInputError, OutOfMemoryError, UsageError
from defectgen.folders import Catalog, read_defects, read_normals
from defectgen.imaging.control_maps import KnownMask, levels_of, to_text
from defectgen.imaging.images import encode_png, read_image
from defectgen.imaging.places import Grain, KnownSpot, Spot
from defectgen.imaging.places import to_text as to_spot
from defectgen.imaging.windows import Box
from defectgen.methods import info
from defectgen.methods.base import GenerateBatch, Generated, MethodConfig, Task
from defectgen.methods.dcdganc import DCDGANc, DCDGANcConfig
from defectgen.methods.defect_gan import DefectGAN, DefectGANConfig
from defectgen.methods.dfmgan import DFMGAN, DFMGANConfig
from defectgen.methods.dt_gan import DTGAN, DTGANConfig
from defectgen.methods.networks import flatten
from defectgen.models import checkpoint
from defectgen.models.registry import Entry
from defectgen.nn.paired import soft
from defectgen.synthesis.generated import (
    PaintedSamples,
    SynthesisRequest,
    laid,
    native_mask,
    posed_as_real,
    synthesize,
)
from defectgen.synthesis.pasted import Placement, Region
from defectgen.synthesis.stream import Judgement, SampleSpec

CONFIG = DTGANConfig(image_size=32, width=8, max_width=16, c_channels=2, latent_dim=4, style_dim=4)
TASK = Task(
    domains=("normal", "dent", "spot"),
    products=("part",),
    channels=1,
    scales={"part": {"dent": 1.0, "spot": 0.5}},
)


def record(sample: Sample) -> dict[str, Any]:
    """The provenance of a sample, as in its manifest row."""
    return sample.provenance.model_dump(mode="json", exclude_unset=True)


def random_model(path: Path, name: str, config: MethodConfig, task: Task = TASK) -> Path:
    """Write a model file with random weights."""
    torch.manual_seed(0)
    networks = info(name).load()(config, task, torch.device("cpu")).networks.averaged
    tensors = {key: value for each, network in networks.items() for key, value in flatten(each, network).items()}
    saved = {"method": name, "config": config.model_dump(), "task": task.model_dump(mode="json")}
    checkpoint.save(path, tensors, saved)
    return path


def other(entry: Entry, name: str, method: str, config: MethodConfig, task: Task = TASK) -> Entry:
    """A model of another method for the same images."""
    path = random_model(entry.file.with_name(f"{name}.safetensors"), method, config, task)
    return entry.model_copy(update={"name": name, "method": method, "file": path, "sha256": files.sha256(path)})


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """A model with random weights and a folder of images: gray 8 and 16 bit, color, one smaller than a window."""
    folder = tmp_path_factory.mktemp("sampling")
    (folder / "normals").mkdir()
    rng = np.random.default_rng(0)
    for i, (shape, dtype) in enumerate([((90, 70), "u1"), ((64, 100), "u2"), ((80, 80, 3), "u1"), ((24, 60), "u1")]):
        low, high = (90, 110) if dtype == "u1" else (20_000, 24_000)
        (folder / f"normals/{i}.png").write_bytes(encode_png(rng.integers(low, high, shape, dtype)))
    path = random_model(folder / "model.safetensors", "dt-gan", CONFIG)
    return Entry(
        name="m", method="dt-gan", categories=("dent", "spot"), products=("part",), image_size=32, channels=1,
        file=path, sha256=files.sha256(path), created=datetime.now(timezone.utc),
        trained_on={"part": folder / "normals"},
    )  # fmt: skip


@pytest.fixture
def request_for(entry: Entry) -> Callable[..., SynthesisRequest]:
    def make(num: int = 6, **changes: Any) -> SynthesisRequest:
        normals = read_normals(entry.trained_on["part"], product="part")
        own = (
            "batch_size", "placement", "regions", "restored", "restore", "whole", "references", "style", "patches",
            "same_object", "truncation",
        )  # fmt: skip
        ours = {name: changes.pop(name) for name in own if name in changes}
        wanted = replace(SampleSpec(("dent", "spot"), num, normals), **changes)
        return SynthesisRequest(entry, wanted, device="cpu", **ours)

    return make


@pytest.fixture(autouse=True)
def _painter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the network: a dark disc at a random position from the sample's generator."""

    def generate(_self: DTGAN, request: GenerateBatch) -> Generated:
        x = request.x.clone()
        for row, rng in enumerate(request.rngs):
            cx, cy = torch.randint(14, 18, (2,), generator=rng).tolist()
            disc = cv2.circle(np.zeros((32, 32), np.uint8), (cx, cy), 5, 1, -1)
            x[row, :, torch.from_numpy(disc).bool()] = -1.0
        return Generated(x)

    monkeypatch.setattr(DTGAN, "generate", generate)


def same(first: Sample, second: Sample) -> bool:
    return (
        first.index == second.index
        and record(first) == record(second)
        and np.array_equal(first.image, second.image)
        and np.array_equal(first.mask, second.mask)
    )


def test_samples_come_in_order_with_categories_in_turn(request_for: Callable[..., SynthesisRequest]) -> None:
    samples = list(synthesize(request_for(7, batch_size=3)))
    assert [sample.index for sample in samples] == list(range(7))
    assert [sample.category for sample in samples] == ["dent", "spot"] * 3 + ["dent"]


def test_the_image_keeps_its_size_depth_and_every_pixel_away_from_the_defect(
    request_for: Callable[..., SynthesisRequest],
) -> None:
    depths = set()
    for sample in synthesize(request_for(16)):
        source = read_image(Path(record(sample)["source"])).pixels
        assert sample.image.shape == source.shape
        assert sample.image.dtype == source.dtype
        assert sample.mask.shape == source.shape[:2]
        assert sample.mask.any()
        reach = 2 * 4 + 3  # the feather at scale 0.5, and a pixel around the mask
        near = cv2.dilate(sample.mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
        np.testing.assert_array_equal(sample.image[~near], source[~near])
        changed = sample.image != source
        assert (changed.any(axis=2) if changed.ndim == 3 else changed)[sample.mask].mean() > 0.95
        depths.add(source.dtype)
    assert len(depths) == 2


def test_categories_have_the_scale_of_the_training(
    request_for: Callable[..., SynthesisRequest],
) -> None:
    samples = list(synthesize(request_for(8)))
    assert {(s.category, record(s)["window"]["side"]) for s in samples} == {("dent", 32), ("spot", 64)}
    area = {c: np.mean([s.mask.sum() for s in samples if s.category == c]) for c in ("dent", "spot")}
    assert area["spot"] > 2.5 * area["dent"]


@pytest.mark.parametrize("changes", [{"num": 9}, {"workers": 4}, {"batch_size": 2}, {"skip": frozenset({0, 1, 2, 4})}])
def test_sample_k_is_the_same_in_any_run(request_for: Callable[..., SynthesisRequest], changes: dict[str, Any]) -> None:
    one = {sample.index: sample for sample in synthesize(request_for(6))}
    other = {sample.index: sample for sample in synthesize(request_for(**{"num": 6, **changes}))}
    assert set(other) == set(range(changes.get("num", 6))) - changes.get("skip", frozenset())
    assert all(same(one[index], sample) for index, sample in other.items() if index in one)


def test_samples_are_painted_side_by_side_each_on_one_thread(
    request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's sums, and so the outlines of masks, depend on its number of threads."""
    generate, both, threads = DTGAN.generate, Barrier(2), []

    def waiting(self: DTGAN, request: GenerateBatch) -> Generated:
        both.wait(timeout=30)  # for another one
        threads.append(torch.get_num_threads())
        return generate(self, request)

    monkeypatch.setattr(DTGAN, "generate", waiting)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert len(list(synthesize(request_for(8, workers=2)))) == 8
        assert threads == [1] * 8
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_another_seed_makes_other_samples(request_for: Callable[..., SynthesisRequest]) -> None:
    (one,), (other,) = (list(synthesize(request_for(1, seed=seed))) for seed in (1, 2))
    assert not same(one, other)


def test_a_manifest_row_replays_its_sample(request_for: Callable[..., SynthesisRequest]) -> None:
    *_, sample = synthesize(request_for(5))
    index, seed = record(sample)["parameters"]["index"], record(sample)["seed"]
    again = list(synthesize(request_for(index + 1, seed=seed, skip=frozenset(range(index)))))
    assert len(again) == 1
    assert same(again[0], sample)


def test_samples_without_a_visible_defect_are_regenerated(
    request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    paint = DTGAN.generate

    def second_time(self: DTGAN, request: GenerateBatch) -> Generated:
        seen.append(request.x)
        return paint(self, request) if len(seen) > 4 else Generated(request.x)

    monkeypatch.setattr(DTGAN, "generate", second_time)
    samples = synthesize(request_for(4, batch_size=4))
    assert [sample.index for sample in samples] == [0, 1, 2, 3]
    assert samples.redrawn == 4
    assert samples.failed == []


def test_samples_that_never_show_a_defect_fail_and_are_counted(
    request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DTGAN, "generate", lambda _, request: Generated(request.x))
    samples = synthesize(request_for(3))
    assert list(samples) == []
    assert samples.failed == [0, 1, 2]


def test_the_rim_of_a_window_is_never_painted(
    request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def framed(_self: DTGAN, request: GenerateBatch) -> Generated:
        x = request.x.clone()
        x[:, :, :7], x[:, :, :, -7:] = 1.0, 1.0
        x[:, :, 12:20, 12:20] = -1.0
        return Generated(x)

    monkeypatch.setattr(DTGAN, "generate", framed)
    for sample in synthesize(request_for(8, categories=("dent",))):
        source = read_image(Path(record(sample)["source"])).pixels.astype(int)
        assert (sample.image.astype(int) <= source).all()  # the square is dark, the frame would be bright


def test_drawing_is_lazy(request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of samples: no more than two batches are drawn ahead."""
    drawn: list[int] = []
    draw = PaintedSamples._draw

    def noting(self: PaintedSamples, index: int, attempt: int) -> Any:
        drawn.append(index)
        return draw(self, index, attempt)

    monkeypatch.setattr(PaintedSamples, "_draw", noting)
    samples: Iterator[Sample] = iter(synthesize(request_for(10_000, batch_size=4)))
    next(samples)
    assert len(drawn) <= 8
    samples.close()  # type: ignore[attr-defined]


def test_length_excludes_skipped_samples(request_for: Callable[..., SynthesisRequest]) -> None:
    assert len(synthesize(request_for(10, skip=frozenset({3, 99})))) == 9


def test_unknown_category_error_lists_the_known_ones(request_for: Callable[..., SynthesisRequest]) -> None:
    with pytest.raises(UsageError, match="--category rust: m knows dent, spot"):
        synthesize(request_for(categories=("rust",)))


def test_out_of_memory_names_the_next_batch_size(
    request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(DTGAN, "generate", exhausted)
    with pytest.raises(OutOfMemoryError, match="--batch-size 4; try --batch-size 2"):
        list(synthesize(request_for(batch_size=4)))


@pytest.fixture(scope="module")
def references(entry: Entry) -> Catalog:
    """Two images of each category with a mask, and one without."""
    folder = entry.file.parent / "other"
    for category in ("dent", "spot"):
        (folder / "defects" / category).mkdir(parents=True)
        (folder / "masks" / category).mkdir(parents=True)
        for i in range(3):
            pixels, mask = np.full((150, 150), 100, np.uint8), np.zeros((150, 150), np.uint8)
            mask[110 + i : 120, 100:110] = 255
            pixels[mask > 0] = 30
            (folder / f"defects/{category}/{i}.png").write_bytes(encode_png(pixels))
            if i < 2:
                (folder / f"masks/{category}/{i}.png").write_bytes(encode_png(mask))
    return read_defects(folder / "defects", product="unknown", masked=False)


def test_references_are_windows_around_defects_and_recorded_in_the_manifest(
    request_for: Callable[..., SynthesisRequest], references: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint, seen = DTGAN.generate, list[GenerateBatch]()

    def noting(self: DTGAN, request: GenerateBatch) -> Generated:
        seen.append(request)
        return paint(self, request)

    monkeypatch.setattr(DTGAN, "generate", noting)
    samples = list(synthesize(request_for(6, references=references, workers=1)))
    assert len(seen) == 6
    for request, sample in zip(seen, samples, strict=True):
        assert request.x_ref is not None
        assert request.x_ref is request.x_style or torch.equal(request.x_ref, request.x_style)  # type: ignore[arg-type]
        reference = record(sample)["reference"]
        assert record(sample)["style"] == reference
        path, window = Path(reference["file"]), reference["window"]
        assert reference["sha256"] == files.sha256(path)
        assert path.parent.name == sample.category
        assert window["side"] == (32 if sample.category == "dent" else 64)  # the scale of the category in training
        if path.stem != "2":
            assert request.x_ref.min() < -0.5
            assert window["x"] <= 100
            assert window["x"] + window["side"] >= 110
    assert len({record(sample)["reference"]["file"] for sample in samples}) > 2


def test_a_style_is_random_or_from_other_images(
    request_for: Callable[..., SynthesisRequest], references: Catalog, entry: Entry
) -> None:
    (sampled,) = synthesize(request_for(1, references=references, style="sampled"))
    assert "style" not in record(sampled)
    (styled,) = synthesize(request_for(1, references=references, style=references, seed=3))
    assert record(styled)["style"] != record(styled)["reference"]
    (latent,) = synthesize(request_for(1, style=references))
    assert "reference" not in record(latent)
    assert record(latent)["style"]["file"].endswith(".png")


def test_an_unknown_product_is_painted_at_the_scale_of_the_known_ones(
    request_for: Callable[..., SynthesisRequest], entry: Entry
) -> None:
    normals = read_normals(entry.trained_on["part"], product="unseen")
    samples = list(synthesize(request_for(4, normals=normals)))
    assert [record(sample)["window"]["side"] for sample in samples] == [32, 64, 32, 64]
    assert {sample.product for sample in samples} == {"unseen"}


def test_methods_without_references_name_the_one_that_supports_them(
    request_for: Callable[..., SynthesisRequest], references: Catalog, entry: Entry
) -> None:
    request = request_for(1, references=references)
    config = DefectGANConfig(image_size=32, width=8, max_width=8, blocks=1, control_channels=4)
    with pytest.raises(
        UsageError, match=r"cannot take defects from reference images \(--from, --like\); dt-gan and dcdganc can"
    ):
        synthesize(replace(request, entry=other(entry, "unguided", "defect-gan", config)))
    with pytest.raises(UsageError, match=r"cannot apply a style \(--style\); dt-gan can"):
        synthesize(
            replace(request, references=None, style="sampled", entry=other(entry, "plain", "defect-gan", config))
        )
    few = Catalog.of([references.model_copy(update={"images": references.images[:3]})])
    with pytest.raises(UsageError, match="--from: has no spot, only dent"):
        synthesize(replace(request, references=few))


class _Picky:
    """Rejects two attempts at every other sample, for one reason each."""

    name = "picky"
    photographs = ("0" * 64,)

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def __call__(self, sample: Sample, source: Any) -> Judgement:
        assert source.shape == sample.image.shape
        assert (source != sample.image).any()
        attempt = self.seen[sample.index] = self.seen.get(sample.index, 0) + 1
        return Judgement(("copy", "implausible", None)[attempt - 1] if sample.index % 2 else None, 0.5)


def test_rejected_samples_are_regenerated_and_counted(request_for: Callable[..., SynthesisRequest]) -> None:
    samples = synthesize(request_for(6, gate=_Picky()))
    plain = list(synthesize(request_for(6)))
    for sample, before in zip(samples, plain, strict=True):
        assert record(sample)["gate"] == "picky"
        assert record(sample)["distance"] == 0.5
        assert record(sample)["refused"] == (["copy", "implausible"] if sample.index % 2 else [])
        assert record(sample)["parameters"]["attempt"] == (2 if sample.index % 2 else 0)
        assert np.array_equal(sample.image, before.image) == (sample.index % 2 == 0)
    assert samples.redrawn == 6
    assert samples.refused == {"copy": 3, "implausible": 3}
    assert samples.metadata["gated_by"] == ["0" * 64]


def test_samples_that_the_gate_always_rejects_fail(request_for: Callable[..., SynthesisRequest]) -> None:
    class Closed(_Picky):
        def __call__(self, sample: Sample, source: Any) -> Judgement:
            return Judgement("unmarked")

    samples = synthesize(request_for(2, gate=Closed()))
    assert list(samples) == []
    assert samples.failed == [0, 1]


def test_native_mask_has_a_smooth_outline() -> None:
    disc = cv2.circle(np.zeros((32, 32), np.uint8), (16, 16), 8, 1, -1) > 0
    large = native_mask(disc, 128)
    assert large.sum() == pytest.approx(16 * disc.sum(), rel=0.1)


# Models that generate defect patches


@pytest.fixture(scope="module")
def maker(entry: Entry) -> Entry:
    """A DCDGANc model with random weights for the same images."""
    config = DCDGANcConfig(image_size=32, width=4, max_width=8, latent_dim=4, hidden_channels=4)
    return other(entry, "c", "dcdganc", config)


@pytest.fixture
def patches_for(
    maker: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SynthesisRequest]:
    """Replaces the network: a dark disc in a rim on the pure background, with a random size from the generator."""

    def generate(_self: DCDGANc, request: GenerateBatch) -> Generated:
        images = np.full((len(request.rngs), 1, 32, 32), -1, np.float32)
        for image, rng in zip(images, request.rngs, strict=True):
            radius = int(torch.randint(5, 8, (1,), generator=rng))
            cv2.circle(image[0], (16, 16), radius + 4, 0.2, -1)  # the rim, as bright as its surroundings
            cv2.circle(image[0], (16, 16), radius, -0.4, -1)
        return Generated(torch.from_numpy(images))

    monkeypatch.setattr(DCDGANc, "generate", generate)

    def make(num: int = 6, **changes: Any) -> SynthesisRequest:
        return replace(request_for(num, **changes), entry=maker)

    return make


def test_patches_are_blended_at_the_scale_of_their_category(patches_for: Callable[..., SynthesisRequest]) -> None:
    areas: dict[str, list[int]] = {"dent": [], "spot": []}
    for sample in synthesize(patches_for(24, placement=Placement(scale=(1, 1)))):
        source = read_image(Path(record(sample)["source"])).pixels
        assert (sample.image.shape, sample.image.dtype) == (source.shape, source.dtype)
        assert sample.image[sample.mask].mean() < source[sample.mask].mean()
        near = cv2.dilate(sample.mask.astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
        np.testing.assert_array_equal(sample.image[~near], source[~near])
        areas[sample.category].append(int(sample.mask.sum()))
        assert record(sample)["model"] == "c"
        assert record(sample)["method"] == "dcdganc"
    assert np.median(areas["spot"]) > 2.5 * np.median(areas["dent"])  # learned at half the scale
    assert np.pi * 4**2 < np.median(areas["dent"]) < np.pi * 9**2  # the disc, without its rim


@pytest.mark.parametrize("changes", [{"num": 9}, {"workers": 4}, {"batch_size": 2}, {"skip": frozenset({0, 2})}])
def test_sample_k_with_patches_is_the_same_in_any_run(
    patches_for: Callable[..., SynthesisRequest], changes: dict[str, Any]
) -> None:
    one = {sample.index: sample for sample in synthesize(patches_for(6))}
    other = {sample.index: sample for sample in synthesize(patches_for(**{"num": 6, **changes}))}
    assert all(same(one[index], sample) for index, sample in other.items() if index in one)


def test_a_mixture_reaches_the_network_and_the_provenance(
    patches_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    paint = DCDGANc.generate

    def noting(self: DCDGANc, request: GenerateBatch) -> Generated:
        assert request.mix is not None
        seen.append(request.mix)
        return paint(self, request)

    monkeypatch.setattr(DCDGANc, "generate", noting)
    (sample,) = synthesize(patches_for(1, categories=("dent:1,spot:3",)))
    torch.testing.assert_close(seen[0], torch.tensor([[0.25, 0.75]]))
    assert sample.category == "dent0.25+spot0.75"
    assert record(sample)["mixture"] == {"dent": 0.25, "spot": 0.75}


def test_several_patches_are_blended_into_one_image(patches_for: Callable[..., SynthesisRequest]) -> None:
    request = patches_for(8, placement=Placement(per_image=(3, 3), scale=(0.4, 0.4)), categories=("dent",))
    counts = [len(record(sample)["parameters"]["defects"]) for sample in synthesize(request)]
    assert max(counts) == 3


def test_unsupported_options_are_rejected(request_for: Callable[..., SynthesisRequest]) -> None:
    with pytest.raises(UsageError, match="dt-gan cannot mix categories; dcdganc can"):
        synthesize(request_for(categories=("dent:0.5,spot:0.5",)))
    with pytest.raises(UsageError, match="m: dt-gan paints defects into windows"):
        synthesize(request_for(placement=Placement()))
    with pytest.raises(UsageError, match=r"dt-gan cannot make unions of categories; defect-gan can"):
        synthesize(request_for(categories=("dent+spot",)))


def test_patches_stay_in_the_region(patches_for: Callable[..., SynthesisRequest]) -> None:
    box = Region(box=Box(0, 0, 40, 40), name="0,0,40,40")
    for sample in synthesize(patches_for(6, regions=((None, box),), categories=("dent",))):
        assert not sample.mask[40:].any()
        assert not sample.mask[:, 40:].any()
    with pytest.raises(UsageError, match="c: dcdganc takes one --region"):
        synthesize(patches_for(regions=(("dent", box),)))


def level_spot(category: str, **changes: Any) -> KnownSpot:
    """A chip of 20 pixels at the right edge, or a bar of 40 pixels, upright, inside; learned at half their scale."""
    chip = category == "dent"
    given: dict[str, Any] = {
        "touches": (False, False, False, chip), "features": (0.95, 0.5, 0.1, 0.5, 0.5),
        "degrees": 0.0 if chip else 90.0, "grain": Grain(90.0, coherent=False), "elongated": True,
        "length": 20.0 if chip else 40.0,
        "box": (0.8, 0.4, 0.2, 0.1) if chip else (0.4, 0.3, 0.1, 0.4), "contrast": -0.4, **changes,
    }  # fmt: skip
    return KnownSpot(Spot(**given), 0.5, 10.0 if chip else 20.0)


class TestLevelPatches:
    """A model that generates level patches with their masks."""

    @pytest.fixture
    def level_for(
        self, entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., SynthesisRequest]:
        """Replaces the network: dark bars of 20 x 4 pixels in windows of 16 x 64; of dents, 10 from the left on."""
        spots = {category: (to_spot(level_spot(category)),) for category in ("dent", "spot")}
        config = DCDGANcConfig(image_size=32, width=4, max_width=8, latent_dim=4, hidden_channels=4, level=True)
        task = TASK.model_copy(update={"spots": spots, "elongated": True})
        made = other(entry, "l", "dcdganc", config, task)

        def generate(_self: DCDGANc, request: GenerateBatch) -> Generated:
            m = torch.zeros(len(request.rngs), 1, 16, 64)
            for row, y in enumerate(request.y.tolist()):
                if request.x_ref is not None:
                    m[row] = (request.x_ref[row, 1:] > 0).float()
                elif y == 1:
                    m[row, 0, 6:10, :10] = 1
                else:
                    m[row, 0, 6:10, 20:40] = 1
            return Generated(-0.5 * m, m)

        monkeypatch.setattr(DCDGANc, "generate", generate)

        def make(num: int = 6, **changes: Any) -> SynthesisRequest:
            return replace(request_for(num, **changes), entry=made)

        return make

    def test_patches_have_the_pose_and_the_size_of_a_real_defect(
        self, level_for: Callable[..., SynthesisRequest]
    ) -> None:
        samples = synthesize(level_for(12, placement=Placement(vary=0)))
        for sample in samples:
            rows, columns = np.nonzero(sample.mask)
            scale = record(sample)["parameters"]["defects"][0]["scale"]
            source = read_image(Path(record(sample)["source"])).pixels.astype(float)
            if sample.category == "dent":
                assert columns.max() == sample.mask.shape[1] - 1
                assert np.ptp(columns) == pytest.approx(20 * scale, abs=4)
                assert np.ptp(rows) == pytest.approx(8 * scale, abs=4)
            else:
                assert np.ptp(rows) > 2 * np.ptp(columns)  # upright
            change = (sample.image.astype(float) / source)[sample.mask]
            if sample.image.dtype == np.uint8:
                assert change.mean() == pytest.approx(0.5, abs=0.12)  # -0.5 of the brightness, whatever it is
        assert samples.metadata["places"]["dent"]["at_edges"] == {"right": 1.0}

    def test_patches_are_varied_as_cut_outs_are(self, level_for: Callable[..., SynthesisRequest]) -> None:
        for sample in synthesize(level_for(16)):
            (defect,) = record(sample)["parameters"]["defects"]
            rows, columns = (np.ptp(each) for each in np.nonzero(sample.mask))
            dent = sample.category == "dent"
            length = (20 if dent else 40) * defect["scale"] * defect["variation"]["stretch"]
            if length < min(sample.mask.shape):
                assert (columns if dent else rows) == pytest.approx(length, abs=0.15 * length + 2)
            if dent:  # where it ends, it is not bent away
                assert np.nonzero(sample.mask)[1].max() == sample.mask.shape[1] - 1
        assert len({float(np.ptp(np.nonzero(sample.mask)[1])) for sample in synthesize(level_for(12))}) > 3

    def test_what_ends_where_no_real_one_does_is_regenerated(self) -> None:
        m = np.zeros((16, 64), np.float32)
        m[6:10, :20] = 1
        x, rng, inside = -0.5 * m[None], np.random.default_rng(0), [level_spot("spot")]
        assert posed_as_real(rng, x, m, inside, cut=False) is None
        assert posed_as_real(rng, x, m, [level_spot("dent")], cut=False) is not None
        assert posed_as_real(rng, x[:, :, ::-1], m[:, ::-1], inside, cut=False) is None  # cut off at the right
        assert posed_as_real(rng, x[:, :, ::-1], m[:, ::-1], inside, cut=True) is not None
        assert posed_as_real(rng, x * 0, m * 0, inside, cut=True) is None

    def test_what_crosses_the_window_crosses_the_image_as_a_real_one(self) -> None:
        """It is not regenerated for being cut off at the right if a real one goes on to the other edge, too."""
        m = np.zeros((16, 64), np.float32)
        m[6:10] = 1
        dent, through = level_spot("dent"), level_spot("dent", touches=(False, False, True, True))
        for seed in range(10):
            rng = np.random.default_rng(seed)
            assert posed_as_real(rng, -0.5 * m[None], m, [dent], cut=False) is None
            found = posed_as_real(rng, -0.5 * m[None], m, [dent, through], cut=False)
            assert found is not None
            assert found[2] == through.spot

    def test_thin_lines_that_fade_at_the_border_reach_it(self) -> None:
        m = np.zeros((16, 64), np.float32)
        m[7:9, 2:62] = 1
        m[7:9, [0, 1, -2, -1]] = 0.4
        inside, through = level_spot("spot"), level_spot("dent", touches=(False, False, True, True))
        for known in ([inside], [inside, through]):
            found = posed_as_real(np.random.default_rng(0), -0.5 * m[None], m, known, cut=False)
            assert (found is None) == (through not in known)
        m[7:9, [2, 3, 4, -5, -4, -3]] = 0.4
        found = posed_as_real(np.random.default_rng(0), -0.5 * m[None], m, [inside], cut=False)
        assert found is not None
        assert found[2] == inside.spot

    def test_the_real_one_of_a_similar_size_is_chosen(self) -> None:
        m = np.zeros((16, 64), np.float32)
        m[6:10, 20:40] = 1
        known = [level_spot("spot")._replace(scale=scale, length=length) for scale, length in ((0.5, 21), (0.1, 60))]
        found = [posed_as_real(np.random.default_rng(seed), -0.5 * m[None], m, known, cut=False) for seed in range(40)]
        lengths = [cv2.boundingRect(each[0].defect_mask.view(np.uint8))[2] for each in found if each is not None]
        assert len(lengths) == 40
        assert np.mean(np.array(lengths) < 50) > 0.9

    def test_the_real_one_of_a_similar_contrast_is_chosen(self) -> None:
        m = np.zeros((16, 64), np.float32)
        m[6:10, 20:40] = 1
        known = [level_spot("spot", contrast=contrast) for contrast in (-0.1, -0.5, 0.4)]
        found = [posed_as_real(np.random.default_rng(seed), -0.5 * m[None], m, known, cut=False) for seed in range(40)]
        assert np.mean([each is not None and each[2].contrast == -0.5 for each in found]) > 0.9

    def test_variations_of_a_real_defect_lie_like_it_and_name_it(
        self, level_for: Callable[..., SynthesisRequest], tmp_path: Path
    ) -> None:
        for name in ("defects", "masks"):
            (tmp_path / name / "spot").mkdir(parents=True)
        mask = np.zeros((90, 90), np.uint8)
        cv2.line(mask, (45, 20), (45, 70), 255, 7)
        file = tmp_path / "defects/spot/0.png"
        file.write_bytes(encode_png(np.where(mask > 0, 40, 100).astype(np.uint8)))
        (tmp_path / "masks/spot/0.png").write_bytes(encode_png(mask))
        real = read_defects(tmp_path / "defects", product="part")
        several = Placement(per_image=(2, 2))
        for sample in synthesize(level_for(4, categories=("spot",), references=real, placement=several)):
            for defect in record(sample)["parameters"]["defects"]:  # each that was laid, for the test-set leakage
                assert (defect["content"], defect["content_sha256"]) == (str(file), files.sha256(file))
                assert tuple(defect["box"].values()) == cv2.boundingRect(mask)
        for sample in synthesize(level_for(4, categories=("spot",), references=real)):
            assert record(sample)["reference"]["file"] == str(file)
            assert record(sample)["reference"]["sha256"] == files.sha256(file)
            rows, columns = np.nonzero(sample.mask)
            assert np.ptp(rows) > 2 * np.ptp(columns) or len(sample.image) < 60  # higher than the image

    def test_without_codes_of_defects_there_are_no_variations(
        self, patches_for: Callable[..., SynthesisRequest], references: Catalog
    ) -> None:
        with pytest.raises(UsageError, match="c learned without level=true"):
            synthesize(patches_for(references=references))

    def test_patches_alone_need_no_normals(self, level_for: Callable[..., SynthesisRequest]) -> None:
        for sample in synthesize(level_for(4, patches=True, normals=Catalog(images=(), skipped=()))):
            assert sample.image.shape == sample.mask.shape
            assert max(sample.image.shape) < 40  # cut to the defect and its rim
            assert np.median(sample.image[sample.mask]) == pytest.approx(64, abs=2)
            assert np.median(sample.image[~sample.mask]) == pytest.approx(128, abs=2)
        with pytest.raises(UsageError, match="--format patches: for models of dcdganc, without"):
            synthesize(level_for(4, patches=True, regions=((None, Region(name="object")),)))


# Models that generate whole images


@pytest.fixture
def whole_for(
    entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SynthesisRequest]:
    """Replaces the network: gray images with a dark disc, or with a mask along the border."""
    config = DFMGANConfig(image_size=64, width=4, max_width=8, match_width=4, z_dim=8, w_dim=8)
    task = TASK.model_copy(update={"scales": {"part": {"dent": 0.5, "spot": 0.5}}})
    made = other(entry, "w", "dfmgan", config, task)

    def generate(_self: DFMGAN, request: GenerateBatch) -> Generated:
        count = len(request.rngs)
        normal = torch.stack([torch.rand(1, 64, 64, generator=rng) * 0.1 for rng in request.rngs])
        mask = torch.zeros(count, 1, 64, 64)
        for i, rng in enumerate(request.rngs):
            x, y, kind = torch.randint(20, 44, (3,), generator=rng).tolist()
            if kind < 28:
                mask[i, :, 0] = 1
            else:
                mask[i, 0] = torch.from_numpy(cv2.circle(np.zeros((64, 64), np.float32), (x, y), 8, 1, -1))
        return Generated(normal - 0.8 * mask, mask, normal)

    monkeypatch.setattr(DFMGAN, "generate", generate)

    def make(num: int = 6, **changes: Any) -> SynthesisRequest:
        return replace(request_for(num, **changes), entry=made)

    return make


def test_triplets_differ_only_in_the_mask_and_masks_at_the_border_are_regenerated(
    whole_for: Callable[..., SynthesisRequest],
) -> None:
    samples = synthesize(whole_for(12, whole=True))
    for sample in samples:
        assert sample.image.shape == sample.mask.shape == (64, 64)
        assert sample.normal is not None
        np.testing.assert_array_equal(sample.image[~sample.mask], sample.normal[~sample.mask])
        assert (sample.image[sample.mask] < sample.normal[sample.mask]).all()
        assert sample.mask.sum() == pytest.approx(np.pi * 8**2, rel=0.05)
        assert record(sample)["method"] == "dfmgan"
    assert samples.redrawn > 0
    with pytest.raises(UsageError, match="w: dfmgan generates whole images; --region needs normal images"):
        synthesize(whole_for(whole=True, regions=((None, Region(name="object")),)))


def test_one_object_and_truncation_reach_the_network(
    whole_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch, patches_for: Callable[..., Any]
) -> None:
    seen: list[tuple[list[int], float]] = []

    def generate(_self: DFMGAN, request: GenerateBatch) -> Generated:
        assert request.object_rngs is not None
        seen.append(([rng.initial_seed() for rng in request.object_rngs], request.truncation))
        mask = torch.zeros(len(request.rngs), 1, 64, 64)
        mask[..., 20:40, 20:40] = 1
        return Generated(-0.8 * mask, mask, 0 * mask)

    monkeypatch.setattr(DFMGAN, "generate", generate)
    assert len(list(synthesize(whole_for(5, whole=True, same_object=True, truncation=0.5)))) == 5
    assert len({seed for seeds, _ in seen for seed in seeds}) == 1
    assert {truncation for _, truncation in seen} == {0.5}
    with pytest.raises(UsageError, match=r"makes no whole images \(--same-object, --truncation\); dfmgan does"):
        synthesize(patches_for(same_object=True))


def test_generated_defects_are_blended_at_native_scale(whole_for: Callable[..., SynthesisRequest]) -> None:
    for sample in synthesize(whole_for(6, placement=Placement(scale=(1, 1)))):
        source = read_image(Path(record(sample)["source"])).pixels
        assert sample.image.shape == source.shape
        assert sample.normal is None
        if min(source.shape[:2]) >= 64:
            assert sample.mask.sum() == pytest.approx(4 * np.pi * 8**2, rel=0.3)  # learned at half the scale


def test_masks_that_are_known_are_painted_in_place_unless_a_placement_is_asked_for(
    entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.zeros((64, 64), np.bool_)
    real[28:36, 8:16] = True
    x = np.where(real, np.float32(-0.5), np.float32(0))[None]
    known = to_text(KnownMask(levels_of(real, x, 0 * x), (0.0, 0.5)))
    task = TASK.model_copy(update={"masks": {"dent": (known,), "spot": (known,)}})
    config = DFMGANConfig(image_size=64, width=4, max_width=8, match_width=4, z_dim=8, w_dim=8, prior="bank")
    painted = []

    def generate(_self: DFMGAN, request: GenerateBatch) -> Generated:
        assert request.a is not None
        assert request.tones is not None
        a = request.a.amax(dim=1, keepdim=True)
        assert (request.tones[a > 0] < -0.5).float().mean() > 0.7
        painted.append(request.x.ndim == 4)
        x = request.x if painted[-1] else torch.zeros_like(a)
        return Generated(x - 0.5 * a, a, x)

    monkeypatch.setattr(DFMGAN, "generate", generate)
    request = replace(request_for(8), entry=other(entry, "k", "dfmgan", config, task))
    for sample in synthesize(request):
        row, source = record(sample), read_image(Path(record(sample)["source"])).pixels
        assert row["window"]["x"] <= 0.2 * source.shape[1]  # where the real one lay
        far = cv2.dilate(sample.mask.astype(np.uint8), np.ones((25, 25), np.uint8)) == 0
        np.testing.assert_array_equal(sample.image[far], source[far])
    assert all(painted)
    painted.clear()
    assert "window" not in record(next(iter(synthesize(replace(request, placement=Placement())))))
    assert len(list(synthesize(replace(request, whole=True)))) == 8
    assert not any(painted)
    long = np.zeros((64, 200), np.int8)
    long[30:34] = levels_of(real, x, 0 * x)[30, 10]
    task = TASK.model_copy(update={"masks": {"dent": (to_text(KnownMask(long, (0.5, 0.5))),), "spot": (known,)}})
    longer = replace(request, entry=other(entry, "k2", "dfmgan", config, task), wanted=replace(request.wanted, num=2))
    longer = replace(longer, wanted=replace(longer.wanted, categories=("dent",)))
    for whole in (True, False):
        for sample in synthesize(replace(longer, whole=whole)):
            assert sample.mask.any(axis=0).mean() > 0.9  # from edge to edge
    for of_windows in ({"strength": (0.5, 0.5)}, {"move": ((4.0, 4.0), (0.0, 0.0))}):
        assert next(iter(synthesize(replace(request, **of_windows)))).mask.any()
        with pytest.raises(UsageError, match="k: dfmgan .*use a model of dt-gan or isu-gan or defect-gan"):
            synthesize(replace(request, whole=True, **of_windows))


# Models with region control


@pytest.fixture
def regions_for(
    entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SynthesisRequest]:
    """Replaces the network: dark dents and bright spots where the control map is 1; gray when restored."""
    config = DefectGANConfig(image_size=64, width=8, max_width=8, blocks=1, control_channels=4)
    model = other(entry, "t", "defect-gan", config)

    def generate(self: DefectGAN, request: GenerateBatch) -> Generated:
        a = self._control(request)
        if request.a is None:
            a = a.clone()
            a[..., :20], a[..., 44:] = 0, 0
        m = a.amax(dim=1, keepdim=True)
        return Generated(request.x * (1 - m) + m * (a[:, 1:] - a[:, :1]), m)

    monkeypatch.setattr(DefectGAN, "generate", generate)
    monkeypatch.setattr(DefectGAN, "restore", lambda _self, x, _y, _rngs: torch.zeros_like(x))

    def make(num: int = 6, **changes: Any) -> SynthesisRequest:
        return replace(request_for(num, **changes), entry=model)

    return make


def test_each_category_is_painted_in_its_region(regions_for: Callable[..., SynthesisRequest]) -> None:
    """A dent at the left and a spot at the right in one window. The smallest image is 24 pixels high."""
    regions = (("dent", Region(box=Box(2, 2, 16, 20), name="l")), ("spot", Region(box=Box(40, 4, 14, 16), name="r")))
    samples = list(synthesize(regions_for(8, regions=regions, categories=("dent+spot",))))
    assert {sample.category for sample in samples} == {"dent+spot"}
    for sample in samples:
        source = read_image(Path(record(sample)["source"])).pixels.astype(int)
        change = sample.image.astype(int) - source
        change = change.mean(axis=2) if change.ndim == 3 else change
        assert change[:, :22].min() < -1
        little = 0.12 * source.max()  # resizing may cause overshoot at the rim
        assert change[:, :22].max() < little
        assert change[:, 36:].max() > 1
        assert change[:, 36:].min() > -little
        assert 0.5 * 16 * 20 < sample.mask[:, :22].sum() < 1.3 * 16 * 20
        assert 0.5 * 14 * 16 < sample.mask[:, 36:].sum() < 1.3 * 14 * 16
        assert not sample.mask[:, 22:36].any()
        assert record(sample)["regions"] == ["dent=l", "spot=r"]


def test_a_union_without_regions_and_a_single_category(regions_for: Callable[..., SynthesisRequest]) -> None:
    for sample in synthesize(regions_for(4, categories=("dent", "dent+spot"))):
        assert sample.category == ("dent", "dent+spot")[sample.index % 2]
        assert "regions" not in record(sample)


@pytest.fixture
def with_masks(
    entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SynthesisRequest]:
    """A model that was trained with masks: a bar of 6 x 44 pixels. Its network is replaced by one that paints black."""
    config = DefectGANConfig(image_size=64, width=8, blocks=1, control_channels=4, masks=True)
    real = np.zeros((64, 64), np.int8)
    real[28:34, 10:54] = 1
    task = TASK.model_copy(
        update={"masks": {name: (to_text(KnownMask(real, (0.5, 0.5))),) for name in ("dent", "spot")}}
    )
    model = other(entry, "t", "defect-gan", config, task)

    def generate(_self: DefectGAN, request: GenerateBatch) -> Generated:
        assert request.a is not None
        m = soft(request.a.amax(dim=1, keepdim=True))
        return Generated(request.x * (1 - m) - m, m)

    monkeypatch.setattr(DefectGAN, "generate", generate)
    return lambda num, **changes: replace(request_for(num, **changes), entry=model)


def test_without_a_region_real_masks_are_warped_and_are_the_labels(
    with_masks: Callable[..., SynthesisRequest],
) -> None:
    samples = list(synthesize(with_masks(12, categories=("dent",))))
    assert len({sample.mask.tobytes() for sample in samples}) == 12
    for sample in samples:
        source = read_image(Path(record(sample)["source"])).pixels
        changed = sample.image != source
        changed = changed.any(axis=2) if changed.ndim == 3 else changed
        assert changed[sample.mask].mean() > 0.98
        far = ~(cv2.dilate(sample.mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0)
        assert not changed[far].any()
        assert 60 < sample.mask.sum() < 900


@pytest.fixture
def of_cracks(
    with_masks: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SynthesisRequest]:
    """A model of cracks through images of 96 pixels, of which its windows of 64 show parts."""
    crack = np.zeros((96, 96), np.int8)
    crack[46:50] = 1
    monkeypatch.setattr("defectgen.imaging.control_maps.from_text", lambda _text, _side: KnownMask(crack, (0.5, 0.5)))
    return with_masks


def test_a_crack_through_its_image_crosses_the_new_one(of_cracks: Callable[..., SynthesisRequest]) -> None:
    sides = set()
    for sample in synthesize(of_cracks(8, categories=("dent", "spot"))):
        height, width = sample.mask.shape
        sides.add(record(sample)["window"]["side"])
        assert record(sample)["window"]["side"] == max(64 if sample.category == "dent" else 128, height, width)
        assert sample.mask.any(axis=0).mean() > (0.8 if height > 24 else 0)
    assert len(sides) > 2  # windows of several sizes in a batch


def test_a_long_defect_is_moved(of_cracks: Callable[..., SynthesisRequest]) -> None:
    request = replace(of_cracks(4, categories=("dent",)), move=((9.0, 9.0), (-4.0, -4.0)))
    for sample in synthesize(request):
        assert record(sample)["parameters"]["moved"] == [9, -4]
        assert sample.mask.any()


def test_in_a_large_image_a_long_defect_lies_in_a_window_of_its_own_size(
    of_cracks: Callable[..., SynthesisRequest], tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(encode_png(np.random.default_rng(0).integers(90, 110, (200, 160), np.uint8)))
    normals = read_normals(tmp_path, product="part")
    for sample in synthesize(of_cracks(3, categories=("dent",), normals=normals)):
        assert record(sample)["window"]["side"] == 96
        rows, columns = np.nonzero(sample.mask)
        assert 60 < np.ptp(columns) < 96
        assert np.ptp(rows) < 40


def test_a_union_of_a_long_and_a_short_defect_shows_both(
    with_masks: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    crack = np.zeros((96, 96), np.int8)
    crack[20:24] = 1
    known = iter([KnownMask(crack, (0.5, 0.5)), KnownMask(levels_of(disc()), (0.5, 0.5))])
    monkeypatch.setattr("defectgen.imaging.control_maps.from_text", lambda _text, _side: next(known))
    samples = [each for each in synthesize(with_masks(24, categories=("dent+spot",))) if len(each.mask) > 24]
    assert all(sample.mask.any(axis=0).mean() > 0.8 for sample in samples)
    assert max(cv2.connectedComponents(sample.mask.astype(np.uint8))[0] for sample in samples) > 2
    for sample in samples:  # a crack of 4 pixels across the image, and a disc, which may lie on it
        assert cv2.distanceTransform(sample.mask.astype(np.uint8), cv2.DIST_L2, 5).max() > 5


def test_the_label_of_a_union_names_what_is_visible(
    with_masks: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that paints spots white, now and then, and dents black: samples show both."""

    def generate(_self: DefectGAN, request: GenerateBatch) -> Generated:
        assert request.a is not None
        often = torch.stack([torch.rand(1, generator=rng) < 0.5 for rng in request.rngs]).view(-1, 1, 1, 1)
        dents, spots = (soft(each) for each in request.a.split(1, dim=1))
        spots = spots * often * (1 - dents)
        return Generated(request.x * (1 - dents - spots) - dents + spots, torch.maximum(dents, spots))

    bars = np.zeros((2, 64, 64), np.int8)
    bars[0, 16:22, 16:48] = bars[1, 42:48, 16:48] = 1
    known = iter([KnownMask(bar, (0.5, 0.5)) for bar in bars])
    monkeypatch.setattr("defectgen.imaging.control_maps.from_text", lambda _text, _side: next(known))
    request = with_masks(8, categories=("dent+spot",))
    monkeypatch.setattr(DefectGAN, "generate", generate)
    samples = list(synthesize(request))
    assert len(samples) > 3
    for sample in samples:
        inside = sample.image[sample.mask]
        black, white = np.quantile(sample.image, (0.005, 0.995))
        assert (inside <= black).sum() > 20
        assert (inside >= white).sum() > 20


def test_defects_do_not_lie_on_a_backdrop(
    with_masks: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Real ones had as much light as their windows; the right half of these normals is nearly black."""
    pixels = np.full((64, 160), 160, np.uint8)
    pixels[:, 80:] = 20
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "0.png").write_bytes(encode_png(pixels))
    normals = read_normals(tmp_path / "dark", product="part")
    spot = np.zeros((64, 64), np.int8)
    spot[28:36, 28:36] = 1
    middles = {}
    for light in (0.0, 1.0):
        monkeypatch.setattr(
            "defectgen.imaging.control_maps.from_text",
            lambda _text, _side, light=light: KnownMask(spot, (0.45, 0.5), light=light),
        )
        samples = list(synthesize(with_masks(16, normals=normals, categories=("dent",))))
        middles[light] = [np.argwhere(sample.mask)[:, 1].mean() for sample in samples]
    assert max(middles[0.0]) > 85
    assert max(middles[1.0]) < 82
    assert len(middles[1.0]) == 16


def test_defects_come_to_ground_as_bright_as_their_own(
    with_masks: Callable[..., SynthesisRequest], entry: Entry, tmp_path: Path
) -> None:
    """Real ones lay in the light, on the left and on the right; these normals are bright on one side."""
    (tmp_path / "half").mkdir()
    for i in range(8):
        pixels = np.full((64, 160), 80, np.uint8)
        pixels[:, :80] = 140
        (tmp_path / "half" / f"{i}.png").write_bytes(encode_png(pixels[:, :: -1 if i % 2 else 1].copy()))
    normals = read_normals(tmp_path / "half", product="part")
    spot = np.zeros((64, 64), np.int8)
    spot[28:36, 28:36] = 1
    config = DefectGANConfig(image_size=64, width=8, blocks=1, control_channels=4, masks=True)
    for light, least, most in ((0.0, 0.2, 0.8), (1.27, 0.9, 1.0)):  # nobody knows how bright it was, and known
        known = tuple(to_text(KnownMask(spot, (at, 0.5), 1.0, light)) for at in (0.1, 0.9))
        task = TASK.model_copy(update={"masks": dict.fromkeys(("dent", "spot"), known)})
        model = other(entry, f"lit{light:.0f}", "defect-gan", config, task)
        in_light = []
        for sample in synthesize(replace(with_masks(32, normals=normals, categories=("dent",)), entry=model)):
            middle = int(np.argwhere(sample.mask)[:, 1].mean())
            in_light.append(read_image(Path(record(sample)["source"])).pixels[2, middle] > 100)
        assert least <= np.mean(in_light) <= most


def test_a_model_that_learned_without_masks_is_asked_everywhere(
    entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `paper` is trained, even if its training images had masks."""
    config = DefectGANConfig(image_size=64, width=8, max_width=8, blocks=1, control_channels=4)
    task = TASK.model_copy(
        update={"masks": {name: (to_text(KnownMask(levels_of(disc()), (0, 0))),) for name in ("dent", "spot")}}
    )
    asked = []

    def generate(_self: DefectGAN, request: GenerateBatch) -> Generated:
        asked.append(request.a)
        return Generated(request.x - 0.5, torch.ones_like(request.x[:, :1]))

    monkeypatch.setattr(DefectGAN, "generate", generate)
    list(synthesize(replace(request_for(2), entry=other(entry, "t", "defect-gan", config, task))))
    assert asked
    assert all(a is None for a in asked)


def disc() -> NDArray[np.bool_]:
    return cv2.circle(np.zeros((64, 64), np.uint8), (30, 30), 8, 1, -1) > 0


def test_a_mask_image_as_region_is_painted_exactly_and_a_box_holds_a_real_mask(
    with_masks: Callable[..., SynthesisRequest], entry: Entry
) -> None:
    file = entry.trained_on["part"] / "0.png"
    area = np.zeros(read_image(file).pixels.shape, np.bool_)
    area[20:40, 15:25] = True
    area[30:40, 15:50] = True
    normals = read_normals(file.parent, product="part")
    one = normals.model_copy(update={"images": normals.images[:1]})
    exact = with_masks(3, categories=("dent",), regions=((None, Region(mask=area, name="area.png")),), normals=one)
    for sample in synthesize(exact):
        both, either = (sample.mask & area).sum(), (sample.mask | area).sum()
        assert both > 0.9 * either
    box = Region(box=Box(10, 20, 50, 30), name="10,20,50,30")
    inside = np.zeros_like(area)
    inside[19:51, 9:61] = True
    for sample in synthesize(with_masks(6, categories=("dent",), regions=((None, box),), normals=one)):
        assert not (sample.mask & ~inside).any()
        assert sample.mask.sum() < 0.6 * 50 * 30


def test_a_defect_at_the_edge_of_its_image_comes_to_an_edge(
    with_masks: Callable[..., SynthesisRequest], entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window lies at the left edge, where the real one did; there the change reaches the last pixel."""
    edge = np.zeros((64, 64), np.int8)
    edge[20:40, :12] = 1
    known = KnownMask(edge, (0.0, 0.5), 2.0)
    monkeypatch.setattr("defectgen.imaging.control_maps.from_text", lambda _text, _side: known)
    monkeypatch.setattr("defectgen.synthesis.generated.draw_map", lambda _rng, first, _known, border: first)
    wide = [each for each in read_normals(entry.trained_on["part"], product="part").images if each.width > 64]
    normals = Catalog(images=tuple(wide), skipped=())
    for sample in synthesize(with_masks(4, categories=("spot",), normals=normals)):
        assert record(sample)["window"]["x"] == 0
        assert record(sample)["window"]["side"] == 64  # the category has half the scale, this one twice as much
        source = read_image(Path(record(sample)["source"])).pixels
        assert sample.mask[:, 0].any()
        assert (sample.image != source)[:, 0].any()


def test_strength_scales_the_change_and_is_recorded(with_masks: Callable[..., SynthesisRequest]) -> None:
    request = with_masks(6, categories=("dent",))
    full, half = (list(synthesize(replace(request, strength=(s, s)))) for s in (1.0, 0.5))
    for strong, weak in zip(full, half, strict=True):
        source = read_image(Path(record(strong)["source"])).pixels.astype(float)
        changes = [(each.image - source)[strong.mask].mean() for each in (strong, weak)]
        assert changes[1] == pytest.approx(0.5 * changes[0], rel=0.1)
        np.testing.assert_array_equal(strong.mask, weak.mask)
        assert "strength" not in record(strong)["parameters"]
        assert record(weak)["parameters"]["strength"] == 0.5
    drawn = [record(each)["parameters"]["strength"] for each in synthesize(replace(request, strength=(0.5, 1.5)))]
    assert len(set(drawn)) == 6
    assert 0.5 < min(drawn) < 1 < max(drawn) < 1.5


def test_defects_are_moved_from_where_real_ones_are(with_masks: Callable[..., SynthesisRequest]) -> None:
    request = with_masks(4, categories=("dent",))
    moves = {
        "none": ((0.0, 0.0), (0.0, 0.0)), "fixed": ((9.0, 9.0), (-4.0, -4.0)), "drawn": ((0.0, 20.0), (0.0, 0.0)),
    }  # fmt: skip
    rows = {name: [record(each) for each in synthesize(replace(request, move=move))] for name, move in moves.items()}
    for before, after in zip(rows["none"], rows["fixed"], strict=True):
        if after["parameters"]["attempt"] == 0:
            assert after["window"]["x"] == before["window"]["x"] + 9
            assert after["window"]["y"] == before["window"]["y"] - 4
        assert after["parameters"]["moved"] == [9, -4]
        assert "moved" not in before["parameters"]
    across = [row["parameters"]["moved"][0] for row in rows["drawn"]]
    assert len(set(across)) > 1
    assert 0 <= min(across) < max(across) <= 20


def test_a_model_that_does_not_know_where_defects_are_cannot_move_them(
    request_for: Callable[..., SynthesisRequest], patches_for: Callable[..., SynthesisRequest]
) -> None:
    move = ((5.0, 5.0), (0.0, 0.0))
    with pytest.raises(UsageError, match="--move: m learned without masks where defects are; use --region"):
        list(synthesize(replace(request_for(1), move=move)))
    with pytest.raises(UsageError, match="paints no windows, which --move moves; use a model of dt-gan or"):
        synthesize(replace(patches_for(), move=move))
    with pytest.raises(UsageError, match="--move: .*--region says where they are to be"):
        synthesize(replace(request_for(1, regions=((None, Region(name="object")),)), move=move))


@pytest.mark.parametrize("seed", range(20))
def test_a_window_is_laid_so_that_its_defect_lies_in_a_box(seed: int) -> None:
    """Whatever part of the window the defect covers; a defect that is too large even at full scale is in the middle."""
    rng = np.random.default_rng(seed)
    width, height = rng.uniform(0.1, 0.8, 2)
    extent = (rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height)
    box = Box(*(int(v) for v in rng.integers(0, 200, 2)), *(int(v) for v in rng.integers(10, 150, 2)))
    window = laid(rng, box, extent, 128, 32)
    assert 32 <= window.side <= 128
    for start, length, at, part, corner in (
        (box.x, box.width, extent[0], width, window.x), (box.y, box.height, extent[1], height, window.y)
    ):  # fmt: skip
        first, last = corner + at * window.side, corner + (at + part) * window.side
        if window.side > 32:
            assert start - 1 <= first
            assert last <= start + length + 1
        else:
            outside = max(0.0, part * window.side - length) / 2
            assert start - outside - 1 <= first
            assert last <= start + length + outside + 1


def test_dt_gan_paints_in_a_region(
    entry: Entry, request_for: Callable[..., SynthesisRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its codes paint the lower left of their window: the window is laid so that this lies in the region."""
    banked = CONFIG.model_copy(update={"residual": True, "prior": "bank"})

    def generate(_self: DTGAN, request: GenerateBatch) -> Generated:
        m = torch.zeros(len(request.x), 1, 32, 32)
        m[..., 12:23, 9:20] = 1.0
        return Generated(request.x * (1 - m) - m, m)

    monkeypatch.setattr(DTGAN, "generate", generate)
    monkeypatch.setattr(DTGAN, "extent", lambda *_: (0.25, 0.375, 0.375, 0.375))
    box = Box(20, 3, 20, 20)
    request = request_for(6, categories=("dent",), regions=((None, Region(box=box, name="20,3,20,20")),))
    for sample in synthesize(replace(request, entry=other(entry, "b", "dt-gan", banked))):
        rows, columns = np.nonzero(sample.mask)
        assert box.x <= columns.min() <= columns.max() < box.x + box.width
        assert box.y <= rows.min() <= rows.max() < box.y + box.height
        assert sample.mask.sum() > 100  # 11 on each side: nothing is cut off
        assert record(sample)["window"]["side"] == 32


def test_the_manifest_says_where_codes_come_from(entry: Entry, request_for: Callable[..., SynthesisRequest]) -> None:
    banked = CONFIG.model_copy(update={"residual": True, "prior": "bank"})
    for model, prior in ((entry, "latent"), (other(entry, "b", "dt-gan", banked), "bank")):
        (sample,) = synthesize(replace(request_for(1, categories=("dent",)), entry=model))
        assert record(sample)["prior"] == prior


def test_strength_needs_a_method_that_paints(patches_for: Callable[..., SynthesisRequest]) -> None:
    with pytest.raises(UsageError, match="does not paint changes, which --strength scales; use a model of dt-gan or"):
        synthesize(replace(patches_for(), strength=(0.5, 1.5)))


def test_restored_images_have_the_defect_removed(regions_for: Callable[..., SynthesisRequest]) -> None:
    for sample in synthesize(regions_for(6, restored=True, categories=("dent",))):
        assert sample.restored is not None
        source = read_image(Path(record(sample)["source"])).pixels
        far = ~(cv2.dilate(sample.mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0)
        np.testing.assert_array_equal(sample.restored[far], source[far])
        inside = cv2.erode(sample.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        middle = (int(source.max()) + int(source.min())) / 2 if source.dtype == np.uint16 else 127.5
        gray = sample.restored.mean(axis=2) if sample.restored.ndim == 3 else sample.restored
        assert np.median(gray[inside]) == pytest.approx(middle, rel=0.02)


def test_real_defects_are_removed(
    regions_for: Callable[..., SynthesisRequest], references: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is the image itself, its mask what was removed. Here the network fills dark squares in gray."""
    monkeypatch.setattr(DefectGAN, "restore", lambda _self, x, _y, _rngs: torch.where(x < -0.4, -0.2, x))
    samples = list(synthesize(regions_for(6, normals=references, restore=True)))
    assert [sample.index for sample in samples] == list(range(6))
    for sample in samples:
        source = references.images[sample.index]
        pixels = read_image(source.path).pixels
        assert (sample.category, record(sample)["source"]) == (source.category, str(source.path))
        np.testing.assert_array_equal(sample.image, pixels)
        assert sample.restored is not None
        dark = pixels < 50
        both, either = (sample.mask & dark).sum(), (sample.mask | dark).sum()
        assert both > 0.5 * either
        assert sample.restored[dark].mean() > 80
        np.testing.assert_allclose(sample.restored[:80], pixels[:80], atol=1)


def test_a_region_outside_the_images_is_rejected(regions_for: Callable[..., SynthesisRequest]) -> None:
    region = Region(box=Box(500, 500, 9, 9), name="500,500,9,9")
    with pytest.raises(BadInputError, match=r"--region 500,500,9,9: lies outside a normal of"):
        list(synthesize(regions_for(2, regions=((None, region),), categories=("dent",))))
