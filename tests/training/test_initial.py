"""Trainings that start from a model: what is carried over, what is learned anew, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from defectgen import files, methods
from defectgen.errors import UsageError, WeightsError
from defectgen.folders import Catalog
from defectgen.methods.base import GenerateBatch, Initializable, Method, Staged, Task
from defectgen.methods.networks import Average, flatten, unflatten
from defectgen.models import checkpoint, model
from defectgen.nn.slots import carried
from defectgen.training import initial
from defectgen.training.run import Initial, TrainSpec, identity

CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "dt-gan": {"width": 8, "max_width": 16, "c_channels": 2, "style_dim": 4, "prior": "latent"},
    "dcdganc": {"width": 4, "max_width": 8},
    "isu-gan": {"width": 16, "blocks": 1},
    "defect-gan": {"width": 8, "max_width": 16, "blocks": 1, "control_channels": 4},
    "dfmgan": {"width": 4, "max_width": 8, "match_width": 4, "z_dim": 8, "w_dim": 8, "first_residual": 16},
}
EVERY = [(name, preset) for name in SMALL for preset in ("paper", "tiny")]


def task(categories: str, products: str, channels: int = 1, **more: Any) -> Task:
    return Task(domains=("normal", *categories), products=tuple(products), channels=channels, scales={}, **more)


OLD, NEW = task("abc", "pq"), task("cxay", "rqs", 3)


def built(name: str, preset: str, of: Task, seed: int = 0, **changes: Any) -> Method:
    """A method with random weights where training begins with 0."""
    row = methods.info(name)
    sizes = row.load().Config.sizes
    config = row.configure(preset, {}).model_copy(update={"image_size": sizes[0], **SMALL[name], **changes})
    method = model.build(name, config, of, CPU, seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in method.networks.modules.values():
            for each in module.parameters():
                each.add_(torch.randn(each.shape, generator=rng), alpha=0.05)
        if name == "dfmgan":  # no mask is empty
            method.networks.modules["G"].get_parameter("to_mask.bias").fill_(1.0)
    return method


def spec(method: Method, name: str, run: Path, init: Path | None, **more: Any) -> TrainSpec:
    given = None if init is None else Initial("old", init)
    return TrainSpec(name, "run", run, Catalog(images=(), skipped=()), (), method.config, init=given, **more)


def saved(method: Method, name: str, folder: Path, trained_on: str = "f" * 64) -> Path:
    """The file of a trained model."""
    known = identity(spec(method, name, folder, None), method.task, [trained_on] if trained_on else [], [])
    model.save(folder / "model.safetensors", Average(method.networks.averaged, 0.9), known, 5)
    return folder / "model.safetensors"


def made(method: Method, category: str, channels: int) -> torch.Tensor:
    """A window of a category that `generate` makes, from gray images; of the same random numbers every time."""
    for module in method.networks.modules.values():
        module.eval()
    side = method.config.image_size
    gray = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(1)) - 0.5
    x = gray.expand(-1, channels, -1, -1)
    y = torch.tensor([method.task.domains.index(category)])
    x_ref = torch.cat([x, gray], dim=1) if method.config.draws_masks else None
    return method.generate(GenerateBatch(x, y, [torch.Generator().manual_seed(2)], x_ref=x_ref)).x


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_a_known_category_looks_as_before_whatever_came_or_went(name: str, preset: str, tmp_path: Path) -> None:
    """Categories in another order, new ones, one that is gone, and colors in place of gray."""
    old, new = built(name, preset, OLD), built(name, preset, NEW, seed=1)
    before = {category: made(old, category, 1) for category in "ac"}
    assert not torch.equal(before["a"], before["c"]) or name == "isu-gan"
    started = initial.start(spec(new, name, tmp_path / "run", saved(old, name, tmp_path)), new)
    assert started.record == {"model": "old", "sha256": files.sha256(tmp_path / "model.safetensors"), "fresh": True}
    assert tuple(started.trained_on) == ("f" * 64,)
    for category, image in before.items():
        torch.testing.assert_close(made(new, category, 3), image.expand(-1, 3, -1, -1), atol=5e-4, rtol=1e-3)
    assert torch.isfinite(made(new, "x", 3)).all()
    torch.testing.assert_close(made(new, "x", 3), made(new, "y", 3))


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_the_slots_name_all_tensors_that_depend_on_the_task(name: str, preset: str) -> None:
    old, new = built(name, preset, OLD), built(name, preset, NEW)
    assert isinstance(old, Initializable)
    for key, module in old.networks.modules.items():
        if next(module.parameters(), None) is not None:
            found = carried(flatten(key, module), old.slots, initial.names_of(OLD), initial.names_of(NEW))
            new.networks.modules[key].load_state_dict(unflatten(key, found))  # all of them, in the right shapes


@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_a_discriminator_judges_known_names_as_before(preset: str) -> None:
    old, new = built("dt-gan", preset, OLD), built("dt-gan", preset, task("cab", "qp"))
    assert isinstance(old, Initializable)
    names = initial.names_of(OLD), initial.names_of(new.task)
    judge, judges = old.networks.modules["D"].eval(), new.networks.modules["D"].eval()
    judges.load_state_dict(unflatten("D", carried(flatten("D", judge), old.slots, *names)))
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x.expand(-1, 3 if preset == "tiny" else 1, -1, -1)
    (adv, fg, bg), (adv_now, fg_now, bg_now) = judge(x, torch.tensor([3])), judges(x, torch.tensor([1]))
    torch.testing.assert_close(adv_now, adv)
    torch.testing.assert_close(fg_now, fg[:, [0, 3, 1, 2]])
    torch.testing.assert_close(bg_now, bg[:, [1, 0]])


@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_a_discriminator_of_dfmgan_scores_known_names_as_before(preset: str) -> None:
    """Its layers scale their weights by how many inputs they have."""
    old, new = (built("dfmgan", preset, of, projected=False) for of in (OLD, NEW))
    assert isinstance(old, Initializable)
    names = initial.names_of(OLD), initial.names_of(NEW)
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    colors = x.expand(-1, 3, -1, -1)
    for name, of_gray, of_colors in (
        ("D", x, colors),
        ("D_match", torch.cat([x, x], dim=1), torch.cat([colors, x], dim=1)),
    ):
        judge, judges = old.networks.modules[name], new.networks.modules[name]
        judges.load_state_dict(unflatten(name, carried(flatten(name, judge), old.slots, *names)))
        torch.testing.assert_close(judges(of_colors, torch.eye(5)[[1]]), judge(of_gray, torch.eye(4)[[3]]))


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_while_they_wait_the_networks_that_generate_do_not_change(name: str, preset: str) -> None:
    networks = built(name, preset, OLD).networks
    others = [module for key, module in networks.modules.items() if key not in networks.averaged]

    def step(*, waiting: bool) -> tuple[bool, bool]:
        """Whether the networks that generate changed, and whether the others did."""
        modules = [list(networks.averaged.values()), others]
        before = [[each.clone() for module in part for each in module.parameters()] for part in modules]
        for module in networks.modules.values():
            for each in module.parameters():
                each.grad = torch.ones_like(each)
        networks.wait(waiting=waiting)
        networks.step(*networks.optimizers)
        after = [[each for module in part for each in module.parameters()] for part in modules]
        generate, judge = (
            any(not torch.equal(a, b) for a, b in zip(*part, strict=True)) for part in zip(before, after, strict=True)
        )
        return generate, judge

    assert step(waiting=True) == (False, True)
    assert step(waiting=False) == (True, True)


def test_discriminators_come_from_the_checkpoint_of_the_model_and_of_no_other(tmp_path: Path) -> None:
    old = built("defect-gan", "tiny", OLD)
    path = saved(old, "defect-gan", tmp_path)
    tensors = {f"training.{key}": value.clone() for key, value in old.networks.state().items()}
    tensors |= {f"average.{key}": value for key, value in flatten("G", old.networks.averaged["G"]).items()}

    def start(of: Task) -> tuple[Method, initial.Started]:
        new = built("defect-gan", "tiny", of, seed=1)
        return new, initial.start(spec(new, "defect-gan", tmp_path / "run", path), new)

    checkpoint.save(path.with_name("checkpoint.safetensors"), tensors, {})
    new, started = start(task("ca", "p"))
    assert started.record is not None
    assert not started.record["fresh"]
    key = "heads.3.0.parametrizations.weight.original"
    theirs, ours = (each.networks.modules["D"].state_dict()[key] for each in (old, new))
    assert torch.equal(ours, theirs[[2, 0]])
    checkpoint.save(path.with_name("checkpoint.safetensors"), {**tensors, "average.G.head.bias": torch.ones(2)}, {})
    _, started = start(OLD)
    assert started.record is not None
    assert started.record["fresh"]


def test_the_first_stage_goes_on_from_the_backbone_of_the_model(tmp_path: Path) -> None:
    old, new = built("dfmgan", "tiny", OLD), built("dfmgan", "tiny", task("ca", "p"), seed=1)
    assert isinstance(old, Staged)
    path = saved(old, "dfmgan", tmp_path)
    checkpoint.save(path.with_name("backbone.safetensors"), old.backbone(), {})
    initial.start(spec(new, "dfmgan", tmp_path / "run", path), new)
    theirs, ours = (each.networks.modules["D"].state_dict() for each in (old, new))
    assert torch.equal(ours["fc.weight"], theirs["fc.weight"])
    torch.testing.assert_close(ours["embed.weight"], theirs["embed.weight"][:, [0, 3, 1]] * 0.75**0.5)


def test_fresh_discriminators_train_alone_at_the_start_of_each_stage() -> None:
    known = initial.Started({"fresh": False}, ())
    fresh = initial.Started({"fresh": True}, ())
    judged, later = built("isu-gan", "tiny", OLD).config, built("dt-gan", "tiny", OLD).config
    assert [fresh.alone(judged, progress, 0.0) for progress in (0.0, 0.01, 0.1, 0.9)] == [True, True, False, False]
    assert [fresh.alone(judged, progress, 0.5) for progress in (0.0, 0.1, 0.5, 0.6)] == [True, False, True, False]
    assert not any(each.alone(judged, 0.0, 0.0) for each in (known, initial.Started()))
    assert not fresh.alone(later, 0.0, 0.0)  # its first part has no discriminators


@pytest.mark.parametrize(
    ("of", "changes", "why"),
    [
        (OLD, {"width": 12, "max_width": 24}, "it has width 12 instead of 8, max_width 24 instead of 16; train with"),
        (OLD, {"residual": False}, "it has residual False instead of True; "),
        (task("abc", "p", elongated=True), {}, "its defects are elongated, those of this run are otherwise"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(
    of: Task, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = saved(built("dt-gan", "tiny", of, **changes), "dt-gan", tmp_path)
    new = built("dt-gan", "tiny", OLD)
    with pytest.raises(UsageError) as refused:
        initial.start(spec(new, "dt-gan", tmp_path / "run", path), new)
    assert str(refused.value).startswith(f"--init old: does not fit: {why}")
    assert "\n" not in str(refused.value)


def test_another_method_and_unknown_images_are_refused(tmp_path: Path) -> None:
    new = built("isu-gan", "tiny", OLD)
    path = saved(built("dt-gan", "tiny", OLD), "dt-gan", tmp_path)
    with pytest.raises(UsageError, match="--init old: a model of dt-gan, but this run trains isu-gan"):
        initial.start(spec(new, "isu-gan", tmp_path / "run", path), new)
    path = saved(new, "isu-gan", tmp_path, trained_on="")
    with pytest.raises(UsageError, match="--init old: does not say which images it was trained on"):
        initial.start(spec(new, "isu-gan", tmp_path / "run", path), new)
    path.write_bytes(b"no model")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        initial.start(spec(new, "isu-gan", tmp_path / "run", path), new)


def test_a_method_of_another_package_that_says_nothing_of_its_slots_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = built("isu-gan", "tiny", OLD)
    path = saved(new, "isu-gan", tmp_path)
    monkeypatch.delattr(type(new), "slots")
    with pytest.raises(UsageError, match="--init old: isu-gan always starts from initial weights"):
        initial.start(spec(new, "isu-gan", tmp_path / "run", path), new)


def test_a_run_to_resume_keeps_the_model_that_it_started_from(tmp_path: Path) -> None:
    old = built("isu-gan", "tiny", OLD)
    path = saved(old, "isu-gan", tmp_path)
    run = tmp_path / "run"
    first = initial.start(spec(old, "isu-gan", run, path), old)
    config = {"init": first.record, "trained_on": list(first.trained_on)}
    files.write(run / "config.json", json.dumps(config))
    again = spec(old, "isu-gan", run, None, resume=True)
    with pytest.raises(UsageError, match="no checkpoint to resume; start again with --init old"):
        initial.start(again, old)
    files.write(run / "checkpoint.safetensors", b"")
    assert initial.start(again, old) == initial.Started(first.record, ["f" * 64])
    path.unlink()
    assert initial.start(again, old) == initial.Started(first.record, ["f" * 64])
    other = saved(built("isu-gan", "tiny", OLD, seed=1), "isu-gan", tmp_path / "other")
    with pytest.raises(UsageError, match="--init old: cannot resume, .*run started from the model old, or"):
        initial.start(replace(again, init=Initial("old", other)), old)


def test_banks_and_what_else_belongs_to_the_images_is_learned_anew(tmp_path: Path) -> None:
    old, new = (built("dcdganc", "tiny", OLD, seed) for seed in range(2))
    bank = old.networks.modules["bank"]
    add: Callable[..., None] = bank.add  # type: ignore[assignment]
    add(torch.ones(1, 2, 32, 32), torch.tensor([1]))
    initial.start(spec(new, "dcdganc", tmp_path / "run", saved(old, "dcdganc", tmp_path)), new)
    assert not new.networks.modules["bank"].state_dict()["x"].any()
