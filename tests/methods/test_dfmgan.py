import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defectgen.device import torch_rng
from defectgen.errors import UsageError
from defectgen.methods import info
from defectgen.methods.base import Batch, GenerateBatch, Task
from defectgen.methods.dfmgan import (
    DFMGAN,
    DFMGANConfig,
    Generator,
    area_loss,
    manipulated,
    mask_statistics,
    mode_seeking_loss,
    tiled,
)

CPU = torch.device("cpu")
CONFIG = DFMGANConfig(
    image_size=64, batch_size=4, steps=8, backbone_steps=4, width=4, max_width=8, match_width=4, z_dim=8, w_dim=8,
    lambda_area=1.0, mismatched=0.5, r1_every=2, pl_every=2, first_residual=16, anneal=True, hard_masks=True,
)  # fmt: skip
SCALED = Task(
    domains=("normal", "crack", "hole"), products=("a",), channels=1, scales={"a": {"crack": 1.0, "hole": 0.25}}
)
TASK = Task(domains=("normal", "crack", "hole"), products=("a",), channels=1, scales={"a": {"crack": 1.0, "hole": 1.0}})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int = 0, count: int = 4) -> Batch:
    """Gray surfaces, and defective ones with a black square and its mask."""
    n, d = (torch.rand(count, 1, 64, 64, generator=generator(seed + i)) * 0.4 - 0.2 for i in range(2))
    a = torch.zeros(count, 2, 64, 64)
    y = torch.tensor([1 + i % 2 for i in range(count)])
    for i in range(count):
        d[i, :, 20:36, 16:40] = -1
        a[i, y[i] - 1, 20:36, 16:40] = 1
    zeros = torch.zeros(count).long()
    return Batch(n, zeros, zeros, d, y, zeros, a)


def batch_of_one() -> Batch:
    """The same, of a single category."""
    given = batch()
    assert given.a_ref is not None
    return replace(given, y_ref=torch.ones(4).long(), a_ref=given.a_ref.amax(dim=1, keepdim=True))


@pytest.fixture
def method() -> DFMGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DFMGAN(CONFIG, TASK, CPU)


def test_features_are_manipulated_where_the_mask_is_not_negative() -> None:
    """Equation 1, on a mask of half the resolution."""
    f_object, f_defect = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)
    m = torch.full((1, 1, 4, 4), -1.0)
    m[..., 1, 2], m[..., 3, 0] = 0.0, 2.0
    result = manipulated(f_object, f_defect, m)
    here = m.expand(1, 2, 4, 4) >= 0
    assert torch.equal(result[here], (f_object + f_defect)[here])
    assert torch.equal(result[~here], f_object[~here])
    coarse = torch.tensor([[[[1.0, -3.0]]]])
    assert torch.equal(manipulated(f_object, f_defect, coarse)[..., 2:], f_object[..., 2:])


def test_a_mask_that_is_asked_for_takes_the_place_of_m_with_a_soft_rim() -> None:
    f_object, f_defect = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    m, asked = torch.full((2, 1, 8, 8), -1.0), torch.zeros(2, 1, 16, 16)
    m[1, :, 2:4] = 1.0
    asked[0, :, 4:12, 4:12] = 1.0
    change = (manipulated(f_object, f_defect, m, asked) - f_object) / f_defect
    row = change[0].mean(dim=0)
    assert torch.allclose(row[4, :5], torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 1.0]), atol=1e-4)
    assert torch.allclose(change[1], (m[1] > 0).expand(3, 8, 8).float(), atol=1e-4)  # its row is empty: M decides


# The generator and the discriminators


def test_a_triplet_differs_only_where_features_were_manipulated(method: DFMGAN) -> None:
    torch.nn.init.constant_(method.G.to_mask.bias, -100.0)
    request = GenerateBatch(torch.zeros(2, 0), torch.tensor([1, 2]), [torch_rng(0), torch_rng(1)])
    made = method.generate(request)
    assert made.normal is not None
    assert made.mask is not None
    assert torch.equal(made.x, made.normal)
    assert made.mask.sum() == 0
    torch.nn.init.zeros_(method.G.to_mask.bias)
    made = method.generate(request)
    assert made.normal is not None
    assert made.mask is not None
    assert 0 < made.mask.mean() < 1
    # Convolutions and filters spread a feature at a quarter of the side over some twelve pixels around it.
    far = F.max_pool2d(made.mask, 41, stride=1, padding=20) == 0
    assert (made.x - made.normal).abs()[made.mask > 0].mean() > 1e-3
    assert torch.equal(made.x[far], made.normal[far])


def test_defects_are_made_inside_the_masks_that_are_asked_for(method: DFMGAN) -> None:
    asked = torch.zeros(2, 2, 64, 64)
    asked[0, 0, 20:30, 20:30], asked[1, 1, 40:44, 8:50] = 1.0, 1.0
    made = method.generate(
        GenerateBatch(torch.zeros(2, 0), torch.tensor([1, 2]), [torch_rng(0), torch_rng(1)], a=asked)
    )
    assert made.normal is not None
    assert made.mask is not None
    assert torch.equal(made.mask, asked.amax(dim=1, keepdim=True))
    change = (made.x - made.normal).abs().mean(dim=1, keepdim=True)
    assert (change * made.mask).sum() / made.mask.sum() > 2 * (change * (1 - made.mask)).mean()


@pytest.fixture
def toned() -> DFMGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DFMGAN(CONFIG.model_copy(update={"prior": "bank", "tones": True, "width": 8}), TASK, CPU)


def test_defects_begin_as_dark_as_their_tones_ask(toned: DFMGAN) -> None:
    """A third darker and a third brighter than the ground, as long as R adds nothing."""
    a, tones = torch.zeros(2, 2, 64, 64), torch.zeros(2, 1, 64, 64)
    a[:, 0, 20:44, 20:44] = 1
    tones[:, :, 20:44, 20:44] = torch.tanh(torch.tensor([-2 / 3, 2 / 3])).view(2, 1, 1, 1)
    for parameter in toned.G.residual.parameters():
        torch.nn.init.zeros_(parameter)
    for parameter in toned.G.backbone.to_rgb.parameters():
        torch.nn.init.zeros_(parameter)  # so the ground is gray
    y, rngs = torch.tensor([1, 1]), [torch_rng(0), torch_rng(1)]
    made = toned.generate(GenerateBatch(torch.zeros(2, 0), y, rngs, a=a, tones=tones))
    assert made.normal is not None
    change = made.x - made.normal
    for found, asked in zip(change[..., 24:40, 24:40], (-1 / 3, 1 / 3), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, asked), atol=1e-3, rtol=0)
    assert not change[..., :17, :].any()


def test_r_sees_the_tones_and_has_to_keep_them(toned: DFMGAN) -> None:
    given = batch()
    assert given.a_ref is not None
    tones = -0.7 * given.a_ref.amax(dim=1, keepdim=True)
    asking = replace(given, a=given.a_ref, tones=tones)
    assert "tone" not in toned.training_step(replace(asking, tones=None), 4, 0.5, generator())
    losses = [float(toned.training_step(asking, 4 + i % 4, 0.5, generator(i))["tone"]) for i in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    y, rngs = torch.tensor([1]), [torch_rng(0)]
    first, second = (
        toned.generate(GenerateBatch(torch.zeros(1, 0), y, rngs, a=given.a_ref[:1], tones=each)).x
        for each in (tones[:1], tones[:1] * (torch.arange(64) > 23))
    )
    assert (first - second)[..., 30:].any()  # where tones are equal, but R sees others


def test_defects_are_painted_on_windows_that_are_given(toned: DFMGAN) -> None:
    """What R makes is as strong as its new ground is bright; the rest of the window stays as it is."""
    a = torch.zeros(2, 2, 64, 64)
    a[:, 0, 20:44, 20:44] = 1
    x = torch.full((2, 1, 64, 64), -0.5)
    x[1] = 0.5
    y, rngs = torch.tensor([1, 1]), [torch_rng(0), torch_rng(0)]
    made = toned.generate(GenerateBatch(x, y, rngs, a=a))
    assert made.normal is not None
    torch.testing.assert_close(made.normal, x)
    change = made.x - x
    assert not change[..., :17, :].any()
    inside = (made.x < 1).all(dim=0) & (made.x > -1).all(dim=0) & (a[0, :1] > 0)
    torch.testing.assert_close(change[1][inside], 3 * change[0][inside])
    assert change[0][inside].abs().mean() > 1e-3
    tones = -0.58 * a.amax(dim=1, keepdim=True)
    darker = toned.generate(GenerateBatch(x, y, rngs, a=a, tones=tones)).x
    for parameter in toned.G.residual.parameters():
        torch.nn.init.zeros_(parameter)
    alone = toned.generate(GenerateBatch(x, y, rngs, a=a, tones=tones)).x
    torch.testing.assert_close((alone - x)[..., 28:36, 28:36], (-1 / 3 * (x + 1))[..., 28:36, 28:36], atol=0.01, rtol=0)
    assert not torch.allclose(darker, alone)


@pytest.mark.parametrize("size", [16, 23, 64])
def test_tiles_of_larger_windows_fade_into_each_other(size: int) -> None:
    """What is the same in each tile is the same in all; rows of a batch do not depend on each other."""
    asked = torch.zeros(2, 1, size, size)
    asked[0], asked[1, :, :5, :5] = 1, 1
    seen = []

    def paint(a: Tensor, tones: Tensor | None) -> Tensor:
        seen.append(a.shape)
        assert tones is not None
        return torch.cat([2 * tones, a], dim=1) + 1

    found = tiled(paint, 16, asked, asked / 2)
    assert {shape[2:] for shape in seen} == {(16, 16)}
    torch.testing.assert_close(found[0], torch.full((2, size, size), 2.0))
    alone = tiled(paint, 16, asked[1:], asked[1:] / 2)
    torch.testing.assert_close(found[1:], alone)
    torch.testing.assert_close(alone[:, :, :5, :5], torch.full((1, 2, 5, 5), 2.0))


def test_long_defects_are_painted_in_windows_of_any_size(toned: DFMGAN) -> None:
    a, x = torch.zeros(1, 2, 96, 96), torch.zeros(1, 1, 96, 96)
    a[:, 0, 40:48] = 1
    tones = -0.58 * a.amax(dim=1, keepdim=True)
    request = GenerateBatch(x, torch.tensor([1]), [torch_rng(0)], a=a, tones=tones)
    made = toned.generate(request)
    assert made.mask is not None
    assert torch.equal(made.mask, a[:, :1])
    for parameter in toned.G.residual.parameters():
        torch.nn.init.zeros_(parameter)
    alone = toned.generate(request).x
    torch.testing.assert_close(alone[..., 43:45, :], torch.full((1, 1, 2, 96), -1 / 3), atol=0.01, rtol=0)
    by_r = (made.x - alone)[0, 0]
    assert not by_r[:36].any()
    assert (by_r[44].abs() > 0.02).float().mean() > 0.9  # from edge to edge


def test_changes_have_the_colors_of_real_ones() -> None:
    """Purple cracks on gray roads, after 500 steps."""
    task = TASK.model_copy(update={"channels": 3, "hues": ((0.6, 0.0, 0.8),)})
    method = DFMGAN(CONFIG.model_copy(update={"prior": "bank", "tones": True}), task, CPU)
    a = torch.zeros(1, 2, 64, 64)
    a[:, 0, 20:44, 20:44] = 1
    x = torch.zeros(1, 3, 64, 64)
    made = method.generate(GenerateBatch(x, torch.tensor([1]), [torch_rng(0)], a=a, tones=torch.zeros(1, 1, 64, 64)))
    change = made.x - x
    assert change.abs().max() > 1e-3
    assert not change[:, 1].any()
    inside = made.x.abs().amax(dim=1)[0] < 1
    torch.testing.assert_close(change[0, 2][inside] * 0.6, change[0, 0][inside] * 0.8)


def test_half_of_stage_2_has_real_masks(method: DFMGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    """ToMask's are in the other half, and alone in the losses of masks."""
    seen: list[Tensor] = []
    original = method._binarize

    def binarize(m: Tensor, asked: Tensor | None = None) -> Tensor:
        if asked is not None:
            seen.append(asked.flatten(1).any(dim=1))
        return original(m, asked)

    monkeypatch.setattr(method, "_binarize", binarize)
    drawn = batch(count=4)
    assert drawn.a_ref is not None
    with_masks = replace(drawn, a=torch.ones_like(drawn.a_ref))
    method.training_step(with_masks, method.backbone_steps, 1.0, generator())
    assert [each.tolist() for each in seen] == [[True, True, False, False]] * 2
    method.training_step(drawn, method.backbone_steps, 1.0, generator())
    assert len(seen) == 2


def test_a_row_depends_on_its_own_generator(method: DFMGAN) -> None:
    y = torch.tensor([1, 2])
    both = method.generate(GenerateBatch(torch.zeros(2, 0), y, [torch_rng(5), torch_rng(6)])).x
    alone = method.generate(GenerateBatch(torch.zeros(1, 0), y[1:], [torch_rng(6)])).x
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


def test_the_first_residual_block_is_at_64_of_256_unless_set() -> None:
    network = Generator(DFMGANConfig(width=4, max_width=8, z_dim=8, w_dim=8), 3, 1)
    assert list(network.residual) == ["64", "128", "256"]
    assert network.backbone.styles == 14
    later = Generator(CONFIG.model_copy(update={"first_residual": 32}), 1, 1)
    assert list(later.residual) == ["32", "64"]
    for wrong in ("48", "128"):
        with pytest.raises(UsageError, match=f"first_residual={wrong} must be a power of 2, up to 64"):
            info("dfmgan").configure("tiny", {"first_residual": wrong})


# Losses, by hand


def test_mode_seeking_by_hand() -> None:
    w1, w2 = torch.zeros(1, 4), torch.full((1, 4), 0.5)
    m1, m2 = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert mode_seeking_loss(w1, w2, m1, m2).item() == pytest.approx(1.0, rel=1e-4)


def test_mode_seeking_has_a_bounded_gradient_where_sure_masks_agree() -> None:
    """Of M itself: of its tanh, two sure masks differ by next to nothing, and the gradient is a spike (303)."""
    m1 = torch.full((1, 1, 8, 8), 6.0).requires_grad_(True)
    mode_seeking_loss(torch.zeros(1, 4), torch.ones(1, 4), m1, torch.full((1, 1, 8, 8), 5.0)).backward()
    assert m1.grad is not None
    assert m1.grad.abs().sum() <= 1.01


def test_the_area_loss_compares_sorted_areas_and_recovers_empty_masks() -> None:
    y = torch.tensor([1, 1])
    real = torch.full((2, 1, 10, 10), -1.0)
    real[0, :, :2], real[1, :, :4] = 1, 1  # a fifth, and two fifths
    assert area_loss(real.flip(0), real, y).item() == pytest.approx(0, abs=1e-6)  # the order does not matter
    empty = torch.full((2, 1, 10, 10), -1.0, requires_grad=True)
    loss = area_loss(empty, real, y)
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert empty.grad is not None
    assert (empty.grad < 0).all()
    assert area_loss(torch.ones_like(real), real, y).item() == pytest.approx((0.8 + 0.6) / 2 / 0.3)


def test_the_area_of_a_crack_does_not_serve_for_a_break() -> None:
    real = torch.full((2, 1, 10, 10), -1.0)
    real[0, :, :1], real[1, :, :8] = 1, 1
    assert area_loss(real, real, torch.tensor([1, 2])).item() == pytest.approx(0, abs=1e-6)
    assert area_loss(real.flip(0), real, torch.tensor([1, 2])).item() == pytest.approx((7 + 7 / 8) / 2)


def test_statistics_of_masks() -> None:
    here = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    here[0, 0, :2, :16] = True  # along the upper border
    here[1, 0, 10:14, 10:18] = True
    statistics = {name: value.item() for name, value in mask_statistics(here).items()}
    assert statistics == pytest.approx({"masked": 64 / 4096, "empty": 0.5, "rim": 0.5})
    assert mask_statistics(here & False)["rim"] == 1


# The method


def moved(before: dict[str, Tensor], method: DFMGAN) -> set[str]:
    after = method.networks.state()
    return {key.split(".")[0] + "." + key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}


def test_stage_1_trains_the_backbone_and_stage_2_all_but_the_backbone(method: DFMGAN) -> None:
    def state() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in method.networks.state().items() if not key.startswith("adam")}

    before = state()
    losses = method.training_step(batch(), 0, 0.0, generator())
    assert set(losses) == {"g", "pl", "d", "r1", "p"}
    parts = moved(before, method)
    assert "G.backbone" in parts
    assert any(part.startswith("D.") for part in parts)
    assert not any(part.startswith(("G.residual", "G.to_mask", "G.mapping", "D_match")) for part in parts)

    before = state()
    losses = method.training_step(batch(), 4, 4 / CONFIG.steps, generator())
    assert set(losses) == {"g", "match_g", "ms", "area", "masked", "empty", "rim", "d", "r1", "p", "match_d", "pl"}
    parts = moved(before, method)
    assert "G.backbone" not in parts
    assert {"G.residual", "G.to_mask", "G.mapping"} <= parts
    assert any(part.startswith("D_match") for part in parts)


def test_the_learning_rate_falls_at_the_end_of_each_stage(method: DFMGAN) -> None:
    rates = [method.lr(step / CONFIG.steps) / CONFIG.lr for step in (0, 2, 3, 4, 6, 7)]
    assert rates == pytest.approx([1, 1, 0.5, 1, 1, 0.5])


@pytest.mark.parametrize("step", [2, 5])
def test_training_resumes_exactly(method: DFMGAN, step: int) -> None:
    method.training_step(batch(), step, step / CONFIG.steps, generator())
    fresh = DFMGAN(CONFIG, TASK, CPU)
    fresh.networks.load_state({key: value.clone() for key, value in method.networks.state().items()})
    for each in (method, fresh):
        each.training_step(batch(1), step + 1, (step + 1) / CONFIG.steps, generator(1))
    for key, value in method.networks.state().items():
        assert torch.equal(value, fresh.networks.state()[key]), key


def test_the_learning_rate_is_constant_in_paper() -> None:
    config = DFMGANConfig(**info("dfmgan").load().presets["paper"])
    assert not config.anneal
    assert config.whole


def test_d_carries_its_verdict_on_normals_over_to_defects(method: DFMGAN) -> None:
    """Otherwise stage 2 asks under a random column, whose verdict is a coin's."""
    x = torch.rand(4, 1, 64, 64, generator=generator()) - 0.5
    embed = method.D.get_parameter("embed.weight")
    normal, crack, hole = torch.eye(3)[:, None].expand(-1, 4, -1)
    with torch.no_grad():
        for step in range(4):
            torch.nn.init.normal_(embed[:, :1], generator=generator(step))  # as stage 1 trains it
        before = method.D(x, normal)
        assert not torch.allclose(before, method.D(x, crack))
        method._carry_over()
        for c in (normal, crack, hole):
            torch.testing.assert_close(method.D(x, c), before)


def test_stage_2_starts_without_augmentation_and_raises_it_slowly(method: DFMGAN) -> None:
    method.statistics["p"].data.fill_(0.5)
    p = float(method.training_step(batch(), 4, 0.5, generator())["p"])
    assert p in (0.0, pytest.approx(4 / CONFIG.ada_defects))


def test_a_defect_that_does_not_show_leaves_finite_gradients(method: DFMGAN) -> None:
    torch.nn.init.constant_(method.G.to_mask.bias, -100.0)
    for step in (4, 5):
        assert all(torch.isfinite(v) for v in method.training_step(batch(), step, step / 8, generator(step)).values())
    assert all(torch.isfinite(value).all() for value in method.networks.state().values())


class TestProjected:
    """A D_match of frozen features, and a scale for each category."""

    @pytest.fixture
    def learner(self) -> DFMGAN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return DFMGAN(CONFIG.model_copy(update={"projected": True, "by_category": True}), SCALED, CPU)

    def test_both_stages_train_their_parts(self, learner: DFMGAN) -> None:
        before = {key: value.clone() for key, value in learner.networks.state().items()}
        assert set(learner.training_step(batch(), 0, 0.0, generator())) == {"g", "pl", "d", "p", "r1"}
        parts = moved({k: v for k, v in before.items() if not k.startswith("adam")}, learner)
        assert {"G.backbone", "D.embed"} <= parts
        assert not any(part.startswith(("G.residual", "D_match")) for part in parts)
        before = {key: value.clone() for key, value in learner.networks.state().items()}
        losses = learner.training_step(batch(), 4, 0.5, generator())
        wanted = {"g", "match_g", "ms", "area", "masked", "empty", "rim", "d", "match_d", "pl", "p", "r1"}
        assert set(losses) == wanted
        parts = moved({k: v for k, v in before.items() if not k.startswith("adam")}, learner)
        assert {"G.residual", "G.to_mask", "G.mapping", "D.embed", "D_match.heads"} <= parts
        assert not parts & {"G.backbone", "D_match.ccm", "D_match.csm"}

    def test_the_backbone_takes_the_scale_of_the_category(self, learner: DFMGAN) -> None:
        codes = learner._code(torch.zeros(2).long(), torch.tensor([1, 2]))
        assert codes is not None
        torch.testing.assert_close(codes, torch.tensor([[1.0, 0.0], [0.7071, -0.7071]]), atol=1e-3, rtol=0)
        made = [
            learner.generate(GenerateBatch(torch.zeros(1, 0), torch.tensor([y]), [torch_rng(3)])).normal for y in (1, 2)
        ]
        assert made[0] is not None
        assert made[1] is not None
        assert not torch.allclose(made[0], made[1])

    def test_it_resumes_exactly_across_the_stages(self, learner: DFMGAN) -> None:
        learner.training_step(batch(), 3, 3 / 8, generator())
        fresh = DFMGAN(learner.config, SCALED, CPU)
        fresh.networks.load_state({key: value.clone() for key, value in learner.networks.state().items()})
        for each in (learner, fresh):
            each.training_step(batch(1), 4, 0.5, generator(1))
        for key, value in learner.networks.state().items():
            assert torch.equal(value, fresh.networks.state()[key]), key

    def test_a_backbone_serves_other_categories(self, learner: DFMGAN) -> None:
        task = SCALED.model_copy(update={"domains": ("normal", "hole")})
        other = DFMGAN(learner.config, task, CPU)
        other.take_backbone(learner.backbone())
        torch.testing.assert_close(other.G.backbone.const, learner.G.backbone.const)
        assert set(other.training_step(batch_of_one(), 4, 0.5, generator())) >= {"g", "match_g"}


def test_one_object_with_several_defects(method: DFMGAN) -> None:
    y, rngs = torch.tensor([1, 1]), [torch_rng(1), torch_rng(2)]
    made = method.generate(GenerateBatch(torch.zeros(2, 0), y, rngs, object_rngs=[torch_rng(9), torch_rng(9)]))
    assert made.normal is not None
    assert made.mask is not None
    torch.testing.assert_close(made.normal[0], made.normal[1])
    assert not torch.equal(made.mask[0], made.mask[1])


def test_truncation_draws_objects_and_defects_to_their_mean(method: DFMGAN) -> None:
    def spread(truncation: float) -> float:
        rngs = [torch_rng(i) for i in range(6)]
        same = GenerateBatch(torch.zeros(6, 0), torch.ones(6).long(), rngs, truncation=truncation)
        normal = method.generate(same).normal
        assert normal is not None
        return float(normal.std(dim=0).mean())

    for name, parameter in method.G.backbone.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.zeros_(parameter)  # noise is not truncated
    assert spread(0.0) < 1e-5
    assert 0 < spread(0.5) < 0.9 * spread(1.0)


def test_d_match_gets_binary_masks_and_passes_gradients(method: DFMGAN) -> None:
    m = torch.randn(2, 1, 16, 16, generator=generator()).requires_grad_(True)
    binary = method._binarize(m)
    assert binary.shape == (2, 1, 64, 64)
    up = F.interpolate(m.detach(), size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(binary.detach(), torch.where(up >= 0, 1.0, -1.0))
    binary.sum().backward()
    assert m.grad is not None
    assert (m.grad > 0).all()


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"g": 1.0, "d": 1.0}, None),  # stage 1
        ({"empty": 0.1, "rim": 0.2, "match_g": 1.0}, None),
        ({"empty": 0.9, "rim": 0.2, "match_g": 1.0}, "lambda_area"),
        ({"empty": 0.9, "rim": 0.2, "match_g": 5.0}, "lambda_match"),
        ({"empty": 0.1, "rim": 0.9, "match_g": 1.0}, "border"),
    ],
)
def test_failures_of_the_masks_are_diagnosed(method: DFMGAN, losses: dict[str, float], words: str | None) -> None:
    diagnosis = method.diagnose(losses)
    assert (diagnosis is None) == (words is None)
    assert words is None or words in str(diagnosis)


@pytest.mark.parametrize("examples", [1, 5])
def test_few_examples_do_not_end_in_copies(examples: int) -> None:
    """After some steps on one or five examples, no mask is empty, equals another, or equals an example's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        method = DFMGAN(CONFIG.model_copy(update={"backbone_steps": 1, "steps": 1000}), TASK, CPU)
    real = batch(count=examples)
    assert real.a_ref is not None
    for step in range(1, 31):
        rows = torch.randint(examples, (4,), generator=generator(step))
        drawn = Batch(**{name: value[rows] for name, value in vars(real).items() if value is not None})
        method.training_step(drawn, step, step / 1000, generator(step))
    made = method.generate(GenerateBatch(torch.zeros(8, 0), torch.ones(8).long(), [torch_rng(i) for i in range(8)]))
    assert made.mask is not None
    masks, of_real = made.mask.flatten(1) > 0, real.a_ref.amax(dim=1).flatten(1) > 0

    def overlap(a: Tensor, b: Tensor) -> Tensor:
        both, either = a[:, None] & b[None], a[:, None] | b[None]
        return both.sum(dim=2) / either.sum(dim=2).clamp(min=1)

    assert masks.any(dim=1).all()
    assert overlap(masks, masks)[~torch.eye(8, dtype=torch.bool)].max() < 0.95
    assert overlap(masks, of_real).max() < 0.95


@pytest.mark.parametrize(("preset", "noisy"), [("paper", True), ("compact", False), ("tiny", False)])
def test_defects_have_noise_in_paper_only(preset: str, noisy: bool) -> None:
    """It made them dotted and woven."""
    assert getattr(info("dfmgan").configure(preset, {}), "defect_noise") == noisy  # noqa: B009 (a setting of DFMGAN)
    for config in (CONFIG, CONFIG.model_copy(update={"defect_noise": False})):
        strengths = [name for name in DFMGAN(config, TASK, CPU).G.state_dict() if name.endswith("strength")]
        assert any(name.startswith("backbone") for name in strengths)
        assert any(name.startswith("residual") for name in strengths) == config.defect_noise


def test_the_paper_preset_has_the_papers_settings() -> None:
    config = DFMGANConfig()
    assert (config.image_size, config.lambda_ms, config.lambda_match, config.lambda_area) == (256, 0.1, 1, 0)
    assert math.isclose(config.lr, 2.5e-3)


def test_the_paper_preset_has_the_papers_network_sizes() -> None:
    """Section 3.2: 23.2M parameters in the backbone, 3.7M attached to it, 24M in D, 1.5M in D_match."""
    task = TASK.model_copy(update={"domains": ("normal", "crack"), "channels": 3})
    with torch.device("meta"):
        method = DFMGAN(DFMGANConfig(), task, torch.device("meta"))
        plain = Generator(DFMGANConfig(), 3, 0)  # a model of one category, as the paper's

    def millions(*modules: torch.nn.Module) -> float:
        return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6

    assert millions(plain.backbone) == pytest.approx(23.2, abs=0.1)
    assert millions(plain.mapping, plain.residual, plain.to_mask) == pytest.approx(3.7, abs=0.1)
    assert millions(method.D) == pytest.approx(24, abs=0.5)
    assert millions(method.D_match) == pytest.approx(1.5, abs=0.1)
