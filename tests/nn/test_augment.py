import torch

from defectgen.nn.augment import Augmentation


def fixed(brightness: float = 0.0, contrast: float = 1.0, dx: float = 0.0, dy: float = 0.0) -> Augmentation:
    return Augmentation(
        torch.full((1, 1, 1, 1), brightness), torch.full((1, 1, 1, 1), contrast), torch.tensor([[dx, dy]])
    )


def image() -> torch.Tensor:
    return torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_neutral_parameters_are_the_identity() -> None:
    torch.testing.assert_close(fixed().apply(image()), image())


def test_a_shift_moves_whole_pixels_and_reflects_at_the_edges() -> None:
    shifted = fixed(dx=1 / 8).apply(image())  # two pixels
    torch.testing.assert_close(shifted[..., :-2], image()[..., 2:])
    torch.testing.assert_close(shifted[..., -2:], image()[..., -2:].flip(3))


def test_contrast_keeps_the_mean_and_brightness_adds_to_it() -> None:
    x = image()
    bright = fixed(brightness=0.2, contrast=0.8).apply(x)
    torch.testing.assert_close(bright.mean(), x.mean() + 0.2)
    torch.testing.assert_close(bright.std(), x.std() * 0.8)


def test_a_mask_is_moved_as_its_image_and_keeps_its_values() -> None:
    mask = (image() > 0).float()
    moved = fixed(brightness=0.2, contrast=0.8, dx=1 / 8).moved(mask)
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(moved, fixed(dx=1 / 8).apply(mask))


def test_gradients_reach_the_image() -> None:
    x = image().requires_grad_()
    drawn = Augmentation.draw(1, torch.Generator().manual_seed(3), torch.device("cpu"))
    drawn.apply(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).float().mean() > 0.5


def test_draws_stay_in_their_ranges_and_follow_the_seed() -> None:
    def draw() -> Augmentation:
        return Augmentation.draw(500, torch.Generator().manual_seed(5), torch.device("cpu"))

    drawn = draw()
    assert drawn.brightness.abs().max() <= 0.25
    assert drawn.contrast.min() >= 0.75
    assert drawn.contrast.max() <= 1.25
    assert drawn.shift.abs().max() <= 1 / 8
    assert drawn.brightness.unique().numel() > 450
    torch.testing.assert_close(draw().shift, drawn.shift)
