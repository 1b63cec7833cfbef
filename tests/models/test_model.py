"""Models as files: built by a seed, saved, loaded by name or path, refused where they are not whole."""

import functools
import json
import operator
import random
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from defectgen import files
from defectgen.errors import NoDeviceError, UsageError, WeightsError
from defectgen.methods.base import Method, Task
from defectgen.methods.dt_gan import DTGANConfig
from defectgen.methods.networks import Average
from defectgen.models import checkpoint, model, registry
from defectgen.models.model import SavedCriteria, keep_criteria, load, load_model, save_half

CPU = torch.device("cpu")
CONFIG = DTGANConfig(image_size=32, width=8, max_width=16, c_channels=2, latent_dim=4, style_dim=4)
TASK = Task(domains=("normal", "dent"), products=("part",), channels=1, scales={"part": {"dent": 1.0}})


def built(seed: int = 0) -> Method:
    return model.build("dt-gan", CONFIG, TASK, CPU, seed)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    identity = {
        "method": "dt-gan", "config": CONFIG.model_dump(mode="json"), "task": TASK.model_dump(mode="json"),
        "trained_on": ["a" * 64],
    }  # fmt: skip
    model.save(path, Average(built().networks.averaged, 0.9), identity, 12)
    return path


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(5)
    first = built().networks.state()
    before = torch.random.get_rng_state()
    second = built().networks.state()
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's random numbers change
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(not torch.equal(value, first[key]) for key, value in built(1).networks.state().items())
    with pytest.raises(UsageError, match="nope"):
        model.build("nope", CONFIG, TASK, CPU, 0)


def test_what_was_saved_is_loaded_ready_to_generate(saved: Path) -> None:
    found = load(saved, CPU)
    assert (found.info.name, found.steps, found.trained_on, found.criteria) == ("dt-gan", 12, ("a" * 64,), None)
    assert found.task == TASK
    for name, network in found.method.networks.averaged.items():
        assert not network.training
        for (key, ours), theirs in zip(
            network.state_dict().items(), built().networks.averaged[name].parameters(), strict=False
        ):
            assert key
            assert not ours.requires_grad
            assert ours.dtype == theirs.dtype
    criteria = SavedCriteria(threshold=0.5, border=3, scorer="difference", floor=0.25)
    keep_criteria(saved, criteria)
    again = load(saved, CPU)
    assert (again.criteria, again.threshold, again.steps) == (criteria, 0.5, 12)


def test_by_name_or_by_path(saved: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.toml"
    entry = registry.Entry(
        name="one", method="dt-gan", categories=("dent",), products=("part",), image_size=32, channels=1, file=saved,
        sha256=files.sha256(saved), created=datetime.now(timezone.utc), trained_on={},
    )  # fmt: skip
    registry.add(entry, weights)
    assert load_model("one", weights=weights, device="cpu").file == saved
    assert load_model(saved, device="cpu").file == saved
    assert load_model(str(saved), device="cpu").file == saved
    with pytest.raises(WeightsError, match="no model two"):
        load_model("two", weights=weights, device="cpu")
    with pytest.raises(WeightsError, match="no such file"):
        load_model(tmp_path / "gone.safetensors", device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(NoDeviceError):
            load_model("one", weights=weights, device="cuda")
    keep_criteria(saved, SavedCriteria(threshold=0.5))
    with pytest.raises(WeightsError, match="one"):  # another file than the one that was listed
        load_model("one", weights=weights, device="cpu")


def test_what_is_no_model_is_refused(saved: Path, tmp_path: Path) -> None:
    tensors, identity = checkpoint.load(saved)
    for name, changes in (
        ("method", {"method": "gone-gan"}),
        ("config", {"config": {**identity["config"], "width": 16}}),
        ("task", {"task": None}),
    ):
        path = tmp_path / f"{name}.safetensors"
        checkpoint.save(path, tensors, {**identity, **changes})
        with pytest.raises(WeightsError, match=rf"{name}\.safetensors: "):
            load(path, CPU)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_no_metadata_ends_in_an_internal_error(saved: Path, tmp_path: Path) -> None:
    """Files with a valid checksum, but other values somewhere in their metadata, and other tensors."""
    tensors, identity = checkpoint.load(saved)
    rng = random.Random(3)  # noqa: S311
    values: list[Any] = [None, -1, 0, 2.5, "", "x", [], [None], {}, {"a": None}, True, [["normal"]], float("nan")]
    path = tmp_path / "changed.safetensors"

    def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield (*at, key)
            yield from places(inner, (*at, key))

    loaded = refused = 0
    for _ in range(100):
        changed, kept = json.loads(json.dumps(identity)), dict(tensors)
        if rng.random() < 0.2:  # another shape or type, or one less
            name = rng.choice(sorted(kept))
            kept[name] = rng.choice([kept[name][None], torch.zeros(0), torch.zeros(3, dtype=torch.int64)])
            if rng.random() < 0.3:
                del kept[name]
        else:
            *above, last = rng.choice(list(places(changed)))
            functools.reduce(operator.getitem, above, changed)[last] = rng.choice(values)
        checkpoint.save(path, kept, changed)
        try:
            load(path, CPU)
            loaded += 1  # such as another learning rate
        except WeightsError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            refused += 1
    assert loaded
    assert refused > 60


def test_a_checkpoint_is_no_model(saved: Path, tmp_path: Path) -> None:
    tensors, identity = checkpoint.load(saved)
    checkpoint.save(tmp_path / "checkpoint.safetensors", tensors, {"step": 3, "seconds": 1.0, "identity": identity})
    with pytest.raises(WeightsError, match=r"checkpoint\.safetensors: another kind of file .* no method"):
        load(tmp_path / "checkpoint.safetensors", CPU)
    with pytest.raises(WeightsError, match="no identity"):
        checkpoint.load(saved, "identity")


def test_a_model_for_shipping_has_half_the_size_and_the_same_weights_but_for_rounding(
    saved: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half.safetensors"
    save_half(saved, half)
    assert half.stat().st_size < 0.6 * saved.stat().st_size
    first, second = load(saved, CPU), load(half, CPU)
    assert (first.info, first.task, first.steps, first.trained_on) == (
        second.info, second.task, second.steps, second.trained_on,
    )  # fmt: skip
    differ = False
    for name, network in first.method.networks.averaged.items():
        for key, value in second.method.networks.averaged[name].state_dict().items():
            own = network.state_dict()[key]
            assert value.dtype == own.dtype
            torch.testing.assert_close(value, own, rtol=2**-11, atol=1e-7)
            differ |= not torch.equal(value, own)
    assert differ
    keep_criteria(half, SavedCriteria(threshold=0.5))
    assert load(half, CPU).threshold == 0.5
    assert half.stat().st_size < 0.6 * saved.stat().st_size
    damaged = bytearray(half.read_bytes())
    damaged[-1] ^= 1
    half.write_bytes(damaged)
    with pytest.raises(WeightsError, match="damaged"):
        load(half, CPU)


def test_weights_beyond_float16_are_not_shipped(saved: Path, tmp_path: Path) -> None:
    tensors, record = checkpoint.load(saved)
    name = next(key for key, value in tensors.items() if value.dtype == torch.float32)
    tensors[name].flatten()[0] = 1e5
    checkpoint.save(saved, tensors, record)
    with pytest.raises(WeightsError, match=f"{name} has values beyond the range of float16"):
        save_half(saved, tmp_path / "half.safetensors")
    assert not (tmp_path / "half.safetensors").exists()
