"""Blocks that are faster than PyTorch's, against PyTorch's."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defectgen.nn.layers import box_mean, depthwise, group_norm, join, mixed_precision

BFLOAT16 = partial(torch.autocast, "cpu", torch.bfloat16)


def draw(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("side", [3, 33])
@pytest.mark.parametrize("by", ["nothing", "channel", "row"])
def test_group_norm_and_its_gradients_are_those_of_pytorch(groups: int, side: int, by: str) -> None:
    x, toward = draw(2, 8, side, side + 1, seed=0), draw(2, 8, side, side + 1, seed=1).detach()
    shape = {"nothing": (), "channel": (8,), "row": (2, 8)}[by]
    given = tuple(draw(*shape, seed=seed) if shape else None for seed in (2, 3))
    theirs = F.group_norm(x, groups)
    learned = [each for each in given if each is not None]
    if learned:
        scale, shift = (each.view(-1, 8, 1, 1) for each in learned)
        theirs = theirs * scale + shift
    scaled = partial(group_norm, x, groups, scale=given[0], shift=given[1])
    ours = scaled()
    torch.testing.assert_close(ours, theirs)
    of_ours, of_theirs = (torch.autograd.grad((y * toward).sum(), [x, *learned]) for y in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs)
    with torch.no_grad():
        torch.testing.assert_close(scaled(), theirs)


def test_a_large_mean_does_not_hide_small_differences() -> None:
    x = (1000 + draw(1, 4, 5, 5, seed=0)).detach().float()
    torch.testing.assert_close(group_norm(x, 4), F.group_norm(x.double(), 4).float(), atol=1e-3, rtol=0)


def test_joined_maps_are_those_of_cat_in_channels_last_memory() -> None:
    narrow, wide = draw(2, 1, 3, 4, seed=0), draw(2, 5, 3, 4, seed=1).to(memory_format=torch.channels_last)
    joined = join(narrow, wide)
    assert torch.equal(joined, torch.cat([narrow, wide], dim=1))
    assert joined.is_contiguous(memory_format=torch.channels_last)


def test_group_norm_of_bfloat16_computes_in_float32() -> None:
    x = draw(2, 8, 5, 6, seed=0).detach().bfloat16().requires_grad_()
    scale, shift = (draw(8, seed=seed).detach().float().requires_grad_() for seed in (1, 2))
    ours, theirs = group_norm(x, 4, scale, shift), F.group_norm(x.float(), 4, scale, shift)
    assert torch.equal(ours, theirs.bfloat16())
    of_ours, of_theirs = (torch.autograd.grad(y.float().square().sum(), [x, scale, shift]) for y in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("transposed", [False, True])
def test_depthwise_convolutions_keep_float32_in_mixed_precision(transposed: bool) -> None:
    x, weight, bias = (
        draw(*shape, seed=i).detach().float() for i, shape in enumerate([(2, 3, 9, 8), (3, 1, 4, 4), (3,)])
    )
    convolve = F.conv_transpose2d if transposed else F.conv2d
    expected = convolve(x.bfloat16().float(), weight, bias, stride=2, padding=1, groups=3)
    with BFLOAT16():
        made = depthwise(x.bfloat16().requires_grad_(), weight, bias, stride=2, padding=1, transposed=transposed)
        assert made.dtype == torch.bfloat16
        assert torch.equal(made, expected.bfloat16())
        assert depthwise(x, weight, stride=2, padding=1, transposed=transposed).dtype == torch.float32
    made.float().sum().backward()


@pytest.mark.parametrize("side", [1, 4, 9])
def test_box_means_are_those_of_squares(side: int) -> None:
    x = draw(2, 3, 12, 10, seed=0)
    torch.testing.assert_close(box_mean(x, side), F.avg_pool2d(x, side, stride=1))


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_computes_in_bfloat16_if_it_has_it(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is emulated, which takes several times as long as float32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    with mixed_precision(torch.device("cpu")):
        made = F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
    assert made.dtype == (torch.bfloat16 if has else torch.float32)
