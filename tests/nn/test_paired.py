import pytest
import torch

from defectgen.nn.paired import Hues, center_line_loss, judged, map_loss, ms_loss, pair_loss, soft


def test_the_losses_by_hand() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 7:9, 7:9] = 1
    softened = soft(mask)
    assert (softened[:, :, 7:9, 7:9] == 1).all()
    assert softened[0, 0, 8, 4:12].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3, 0])
    real, first = torch.zeros(2, 1, 16, 16), torch.tensor([1.0, 0.0])
    made = torch.full((2, 1, 16, 16), 0.5)
    assert pair_loss(made, real, mask, torch.ones(2)).item() == pytest.approx(0.5 * 8 / 9)
    made[1] = 9.0
    assert pair_loss(made, real, mask, first).item() == pytest.approx(0.5 * 4 / 5)  # the second has no twin
    assert map_loss(mask, mask, torch.ones(2)).item() == pytest.approx(0, abs=1e-5)
    assert map_loss(torch.zeros_like(mask), mask, first).item() == pytest.approx(1 - 1 / 5)
    z_one, z_two = torch.zeros(2, 4), torch.ones(2, 4)
    assert ms_loss(real, real, z_one, z_two, mask).item() == pytest.approx(1)
    assert ms_loss(real, real + 1, z_one, z_two, mask).item() == pytest.approx(0.05 / (4 / 5 + 0.05))


def test_changes_get_the_nearest_of_the_colors_of_real_defects() -> None:
    change = torch.zeros(2, 3, 4, 4)
    change[0, 0], change[1] = 0.6, torch.tensor([0.3, -0.1, 0.1]).view(3, 1, 1)
    gray = torch.full((3,), 3**-0.5)
    found = Hues([gray.tolist()])(change)
    assert found[0].flatten().tolist() == pytest.approx([0.2] * 48)
    assert found[1].flatten().tolist() == pytest.approx([0.1] * 48)
    two = Hues([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])(change)
    assert torch.equal(two[:, [0, 2]], change[:, [0, 2]])
    assert not two[:, 1].any()
    assert Hues([])(change) is change
    assert not Hues([gray.tolist()]).state_dict()  # it belongs to the task


def test_d_begins_after_the_pairs_or_at_once_without() -> None:
    with_pairs, without = torch.tensor([0.0, 1.0]), torch.zeros(2)
    assert judged(0.2, 0.25, with_pairs) is None
    assert [judged(progress, 0.25, with_pairs) for progress in (0.25, 0.3, 0.35, 1)] == pytest.approx([0, 0.5, 1, 1])
    assert [judged(progress, 0.25, without) for progress in (0, 0.05, 0.2, 0.3)] == pytest.approx([0, 0.5, 1, 1])


def test_a_gap_in_a_thin_line_costs_more_by_its_center_line() -> None:
    line = torch.zeros(1, 1, 24, 64)
    line[..., 11:13, 4:60] = 1
    broken, shifted, thick = line.clone(), line.roll(1, dims=2), line.clone()
    broken[..., 20:44] = 0
    thick[..., 10:14, 4:60] = 1
    assert center_line_loss(line, line).item() == pytest.approx(0, abs=1e-5)
    assert center_line_loss(thick, line).item() < 0.05  # as good a line
    assert center_line_loss(broken, line).item() > 0.2
    assert 0 < center_line_loss(shifted, line).item() <= 1
    for other in (broken, thick, shifted):
        m = other.clone().requires_grad_(True)
        center_line_loss(m, line).backward()
        assert m.grad is not None
        assert torch.isfinite(m.grad).all()
