"""StyleGAN2 against independent references and values computed by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import upfirdn
from scipy.spatial.transform import Rotation

from defectgen.nn.layers import Noise
from defectgen.nn.stylegan2 import (
    Augment,
    Discriminator,
    EqualConv,
    EqualLinear,
    MappingNetwork,
    StyledConv,
    adapted,
    downsample,
    minibatch_std,
    modulated_conv,
    path_length,
    upsample,
)

CPU = torch.device("cpu")
FIR = np.array([1, 3, 3, 1]) / 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*seeds: int) -> Noise:
    return Noise([generator(seed) for seed in seeds or (0,)])


# Layers


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution_equals_a_loop_over_samples(demodulate: bool, kernel: int) -> None:
    torch.manual_seed(0)
    x, weight, style = torch.randn(3, 4, 9, 7), torch.randn(5, 4, kernel, kernel), torch.randn(3, 4)
    expected = []
    for i in range(3):
        own = weight * style[i][None, :, None, None]
        if demodulate:
            own = own / (own.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected.append(F.conv2d(x[i : i + 1], own, padding=kernel // 2))
    torch.testing.assert_close(modulated_conv(x, weight, style, demodulate=demodulate), torch.cat(expected))


def test_modulated_convolution_with_up_equals_upsampling_first() -> None:
    """Equal to upsampling first, since the filter and the convolution commute."""
    torch.manual_seed(0)
    x, weight, style = torch.randn(2, 3, 6, 8), torch.randn(4, 3, 3, 3), torch.rand(2, 3) + 0.5
    doubled = modulated_conv(x, weight, style, up=True, demodulate=False)
    assert doubled.shape == (2, 4, 12, 16)
    expected = F.conv2d(upsample(x * style[:, :, None, None]), weight.flip(2, 3), padding=1)
    torch.testing.assert_close(doubled[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=1e-4, atol=1e-4)


def test_up_and_down_are_scipys_filters() -> None:
    x = torch.randn(1, 2, 10, 12, generator=generator())
    for channel in range(2):
        plane = x[0, channel].numpy().astype(np.float64)
        up = upfirdn(FIR * 2, upfirdn(FIR * 2, plane, up=2, axis=0), up=2, axis=1)[1:21, 1:25]
        np.testing.assert_allclose(upsample(x)[0, channel].numpy(), up, atol=1e-5)
        padded = np.pad(plane, 1)
        down = upfirdn(FIR, upfirdn(FIR, padded, down=1, axis=0)[3:-3:2], down=1, axis=1)[:, 3:-3:2]
        np.testing.assert_allclose(downsample(x)[0, channel].numpy(), down, atol=1e-5)


def test_an_equalized_convolution_that_halves_filters_first() -> None:
    torch.manual_seed(0)
    layer, x = EqualConv(3, 5, 3, down=True), torch.randn(2, 3, 16, 16)
    assert layer(x).shape == (2, 5, 8, 8)
    flat = torch.ones(1, 3, 16, 16)
    plain = EqualConv(3, 5, 3)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(flat)[..., 3:5, 3:5], plain(flat)[..., 6:8, 6:8])


def test_equalized_layers_have_unit_weights_whatever_their_learning_rate() -> None:
    torch.manual_seed(0)
    for lr in (1.0, 0.01):
        y = EqualLinear(64, 512, lr=lr)(torch.randn(256, 64))
        assert y.var().item() == pytest.approx(1, rel=0.1)
    z = torch.randn(256, 16)
    network = MappingNetwork(16, 32, 2)
    torch.testing.assert_close(network(z), network(5 * z), rtol=1e-4, atol=1e-4)  # codes are normalized


def test_a_styled_convolution_keeps_the_variance() -> None:
    torch.manual_seed(0)
    layer = StyledConv(32, 32, 16)
    y = layer(torch.randn(8, 32, 16, 16), torch.randn(8, 16), noise())
    assert y.square().mean().item() == pytest.approx(1, rel=0.25)


def test_a_styled_convolution_has_noise_unless_it_is_to_have_none() -> None:
    x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 16)
    for noisy in (True, False):
        layer = StyledConv(4, 4, 16, noisy=noisy)
        if layer.strength is not None:
            torch.nn.init.ones_(layer.strength)
        assert (layer.strength is not None) == noisy
        first, second = (layer(x, w, Noise([torch.Generator().manual_seed(i)])) for i in (0, 1))
        assert torch.equal(first, second) != noisy


def test_the_standard_deviation_of_a_group() -> None:
    x = torch.zeros(4, 2, 3, 3)
    x[1], x[3] = 2.0, 4.0
    y = minibatch_std(x, group=2)  # images 0 and 2, and 1 and 3
    assert y.shape == (4, 3, 3, 3)
    assert y[0, 2, 0, 0].item() == pytest.approx(0, abs=1e-3)
    assert y[1, 2, 0, 0].item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(y[:2, 2], y[2:, 2])


def test_the_discriminator_depends_on_the_domain() -> None:
    torch.manual_seed(0)
    d = Discriminator(64, 1, 3, 4, 8)
    x, c = torch.randn(4, 1, 64, 64), F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    assert d(x, c).shape == (4,)
    assert (d(x, c) - d(x, c.roll(1, dims=1))).abs().max() > 1e-4


# Augmentation


def test_nothing_is_augmented_at_strength_0() -> None:
    x = torch.rand(3, 3, 16, 16)
    augment = Augment(3, 0.0, generator(), CPU)
    torch.testing.assert_close(augment.image(x), x, rtol=1e-4, atol=1e-4)


def test_image_and_mask_get_the_same_geometry_and_gradients_pass() -> None:
    x = torch.zeros(8, 1, 32, 32)
    x[..., 8:14, 10:24] = 1
    augment = Augment(8, 1.0, generator(3), CPU)
    mask, image = augment.geometry(x), augment.image(x)
    assert (mask - x).abs().mean() > 0.01
    restored = image * augment.luma / augment.contrast - augment.brightness
    torch.testing.assert_close(restored, mask, rtol=1e-3, atol=1e-3)
    x.requires_grad_(True)
    augment.image(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_shifts_are_whole_and_as_strong_as_printed() -> None:
    """ADA, appendix B: fractional ones of an eighth of the side (standard deviation), and whole ones of up to that."""
    augment = Augment(4000, 1.0, generator(2), CPU)
    side = 64
    fractional, whole = (each / 2 * side for each in (augment.theta[:, :, 2], augment.whole))
    assert fractional.std().item() == pytest.approx(side / 8, rel=0.05)
    assert whole.abs().max() <= side / 8
    assert whole.std().item() == pytest.approx(side / 8 / math.sqrt(3), rel=0.05)
    dot = torch.zeros(1, 1, side, side)
    dot[..., 32, 32] = 1
    one = Augment(1, 1.0, generator(5), CPU)
    one.theta = torch.eye(2, 3)[None]
    torch.testing.assert_close(one.geometry(dot).max(), torch.tensor(1.0), rtol=0, atol=1e-4)  # not blurred


def test_without_turns_images_keep_their_directions() -> None:
    theta = Augment(60, 1.0, generator(3), CPU, turns=False).theta[:, :, :2]
    level = (theta[:, 0, 1].abs() < 1e-5) | (theta[:, 0, 0].abs() < 1e-5)
    assert level.all()
    turned = Augment(60, 1.0, generator(3), CPU).theta
    assert (turned[:, 0, 1].abs() > 0.05).float().mean() > 0.7


def test_hue_rotates_colors_and_luma_inverts_gray() -> None:
    x = torch.rand(6, 3, 2, 2, generator=generator()) * 2 - 1
    augment = Augment(6, 1.0, generator(1), CPU)
    augment.theta = torch.eye(2, 3).expand(6, 2, 3)
    augment.brightness, augment.contrast = torch.zeros(6, 1, 1, 1), torch.ones(6, 1, 1, 1)
    assert set(augment.luma.flatten().tolist()) == {-1.0, 1.0}
    axis = np.ones(3) / math.sqrt(3)
    for i in range(6):
        color = Rotation.from_rotvec(axis * augment.hue[i].item()).apply(x[i].flatten(1).t().numpy())
        gray = color.mean(axis=1, keepdims=True)
        expected = gray * augment.luma[i].item() + (color - gray) * augment.saturation[i].item()
        np.testing.assert_allclose(augment.image(x)[i].flatten(1).t().numpy(), expected, atol=1e-4)


def test_strength_follows_the_target_and_stays_in_bounds() -> None:
    assert adapted(0.3, 0.9, 0.6, 50, 1000) == pytest.approx(0.35)
    assert adapted(0.3, 0.2, 0.6, 50, 1000) == pytest.approx(0.25)
    assert adapted(0.01, 0.0, 0.6, 50, 1000) == 0
    assert adapted(0.79, 1.0, 0.6, 50, 1000) == 0.8


# Path length


def test_path_length_of_a_linear_generator() -> None:
    """images = w A: the gradient of <images, y> is A y."""
    a = torch.randn(6, 8 * 8, generator=generator())
    ws = torch.randn(2, 3, 6, generator=generator(1)).requires_grad_(True)
    y = torch.randn(2, 1, 8, 8, generator=generator(2))
    images = (ws.sum(dim=1) @ a).view(2, 1, 8, 8)
    expected = [(a @ y[i].flatten() / 8).norm() for i in range(2)]  # each of the three w has the same gradient
    torch.testing.assert_close(path_length(images, ws, y), torch.stack(expected))
