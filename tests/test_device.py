import platform

import pytest
import torch

from defectgen import ranks
from defectgen.device import check_unshared, keep_freed_memory, resolve, torch_rng
from defectgen.errors import NoDeviceError, UsageError


def test_cpu_is_always_available() -> None:
    assert resolve("cpu") == torch.device("cpu")


def test_auto_is_cuda_if_available() -> None:
    assert resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", ""])
def test_other_names_are_refused_with_those_allowed(name: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:N"):
        resolve(name)


def test_an_unavailable_device_is_named() -> None:
    with pytest.raises(NoDeviceError, match=r"cuda:99.*--device auto or cpu"):
        resolve("cuda:99")


@pytest.mark.parametrize(("local", "index"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_ranks_take_the_devices_in_turn(local: int, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(ranks._session, "place", ranks.Place(local, 4, local, 4))
    assert resolve("cuda") == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
    assert resolve("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"cuda:1: torchrun gives each process its own device; use --device cuda"):
        resolve("cuda:1")
    with pytest.raises(NoDeviceError, match=r"4 processes train on .* with 2 CUDA devices; .* --nproc-per-node 2\)"):
        check_unshared(torch.device("cuda", index))
    check_unshared(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_unshared(torch.device("cuda", index))


def test_the_numbers_depend_on_the_key_only() -> None:
    ours = torch.rand(4, generator=torch_rng(1, 2, 3))
    torch.testing.assert_close(ours, torch.rand(4, generator=torch_rng(1, 2, 3)), atol=0, rtol=0)
    assert not torch.allclose(ours, torch.rand(4, generator=torch_rng(1, 2, 4)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
def test_freed_memory_is_used_again_without_asking_the_system_for_it() -> None:
    import resource  # Windows has none

    keep_freed_memory()
    for _ in range(40):  # aligned blocks leave gaps that are too small for the next, until the heap has a few of them
        torch.ones(5_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(5_000_000)
    pages = 5_000_000 * 4 // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages
