"""Normalization with a backward pass of its own, against PyTorch's."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defectgen.nn.layers import group_norm, join


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
