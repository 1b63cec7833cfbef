from pathlib import Path

import numpy as np
import pytest
import torch

from defectgen.errors import WeightsError
from defectgen.imaging.images import DecodedImage
from defectgen.inspection.reconstruction import NetworkRepair
from defectgen.methods.base import Task
from defectgen.methods.dt_gan import DTGAN, DTGANConfig
from defectgen.methods.isu_gan import ISUGAN, ISUGANConfig
from defectgen.methods.networks import flatten
from defectgen.models import checkpoint
from defectgen.models.model import SavedCriteria, keep_criteria, load

CONFIG = ISUGANConfig(image_size=32, width=16, blocks=1, involution_kernel=3)


def task(scale: float = 1.0, channels: int = 1) -> Task:
    return Task(domains=("normal", "d"), products=("a",), channels=channels, scales={"a": {"d": scale}})


def saved(folder: Path, scale: float = 1.0, channels: int = 1) -> Path:
    torch.manual_seed(0)
    method = ISUGAN(CONFIG, task(scale, channels), torch.device("cpu"))
    tensors = {k: v for name, network in method.networks.averaged.items() for k, v in flatten(name, network).items()}
    record = {"method": "isu-gan", "config": CONFIG.model_dump(), "task": task(scale, channels).model_dump(mode="json")}
    checkpoint.save(folder / "m.safetensors", tensors, record)
    return folder / "m.safetensors"


@pytest.fixture
def brightens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the network: every window gets brighter by 0.25, which is 32 gray levels."""
    monkeypatch.setattr(ISUGAN, "repair", lambda _, x: x + 0.25)


@pytest.mark.parametrize("shape", [(20, 20), (32, 32), (33, 90), (100, 47), (80, 64, 3), (70, 70, 4), (50, 60, 2)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_image_is_repaired_without_seams(
    tmp_path: Path, brightens: None, shape: tuple[int, ...], scale: float, channels: int
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(50, 150, shape, np.uint8)
    repaired = NetworkRepair(saved(tmp_path, scale, channels), "cpu")(Path("a"), DecodedImage(pixels))
    assert (repaired.shape, repaired.dtype) == (pixels.shape, pixels.dtype)
    colors = pixels.shape[2] - 1 if len(shape) == 3 and shape[2] in (2, 4) else None
    change = (repaired.astype(int) - pixels)[..., :colors] if colors else repaired.astype(int) - pixels
    assert set(np.unique(change)) <= {31, 32}
    if colors:
        np.testing.assert_array_equal(repaired[..., -1], pixels[..., -1])


def test_16_bit_stays_16_bit(tmp_path: Path, brightens: None) -> None:
    pixels = np.random.default_rng(0).integers(20_000, 30_000, (60, 50)).astype(np.uint16)
    repaired = NetworkRepair(saved(tmp_path), "cpu")(Path("a"), DecodedImage(pixels))
    change = repaired.astype(int) - pixels
    assert np.median(change) == pytest.approx(0.125 * (pixels.max() - pixels.min()), rel=0.02)


def test_tiles_are_blended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile has a different brightness, and still there are no steps between them."""
    calls = iter(np.linspace(-0.5, 0.5, 50))

    def by_turns(_self: ISUGAN, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([tile + float(next(calls)) for tile in x])

    monkeypatch.setattr(ISUGAN, "repair", by_turns)
    pixels = np.full((100, 200), 128, np.uint8)
    repaired = NetworkRepair(saved(tmp_path), "cpu")(Path("a"), DecodedImage(pixels)).astype(int)
    assert np.ptp(repaired) > 80
    steps = [np.abs(np.diff(repaired, axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < 0.2 * np.ptp(repaired)


@pytest.mark.parametrize("side", [32, 24])
def test_a_single_window_equals_the_networks_output(tmp_path: Path, side: int) -> None:
    path = saved(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side), np.uint8)
    method = load(path, torch.device("cpu")).method
    assert isinstance(method, ISUGAN)
    rim = (32 - side) // 2  # mirrored
    x = torch.from_numpy(np.pad(pixels, rim, mode="reflect")[None, None].astype(np.float32)) / 127.5 - 1
    expected = ((method.repair(x)[0, 0, rim : 32 - rim, rim : 32 - rim] + 1) * 127.5).round().numpy()
    repaired = NetworkRepair(path, "cpu")(Path("a"), DecodedImage(pixels))
    assert np.abs(repaired - expected).max() <= 1


def test_a_method_that_cannot_repair_is_refused(tmp_path: Path) -> None:
    config = DTGANConfig(image_size=32, width=8, max_width=16, c_channels=2, latent_dim=4, style_dim=4)
    method = DTGAN(config, task(), torch.device("cpu"))
    tensors = {k: v for name, network in method.networks.averaged.items() for k, v in flatten(name, network).items()}
    record = {"method": "dt-gan", "config": config.model_dump(), "task": task().model_dump(mode="json")}
    checkpoint.save(tmp_path / "d.safetensors", tensors, record)
    with pytest.raises(WeightsError, match="a model of dt-gan cannot repair images; use one of isu-gan"):
        NetworkRepair(tmp_path / "d.safetensors", "cpu")


def test_the_model_file_stores_the_threshold(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert NetworkRepair(path, "cpu").criteria is None
    keep_criteria(path, SavedCriteria(threshold=0.625, border=7))
    again = NetworkRepair(path, "cpu")
    assert again.criteria == SavedCriteria(threshold=0.625, border=7)
