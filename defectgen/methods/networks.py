"""A method's networks, optimizers and weight averages, handled the same way for all methods."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from defectgen import ranks


class Networks:
    """The modules of a method by name, with their optimizers.

    Args:
        modules: everything that a checkpoint holds. They are moved to `device`, in channels-last memory format.
        optimizers: the optimizers, by the names that `step` takes.
        averaged: the modules that generating needs. Their averages over the steps are the trained model.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        averaged: Sequence[str],
        device: torch.device,
    ) -> None:
        self.modules = dict(modules)
        self.optimizers = dict(optimizers)
        self.averaged = {name: self.modules[name] for name in averaged}
        self._waiting: frozenset[str] = frozenset()
        for module in self.modules.values():
            module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def begin(self, lr: float | None = None) -> None:
        """Clear the gradients of the previous step. If `lr` is given, set it as the learning rate of all optimizers."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups if lr is not None else ():
                group["lr"] = lr

    def step(self, *names: str) -> None:
        """Update the parameters of the optimizers `names`, by the mean of the gradients of all ranks.

        No other code updates parameters. All ranks make the same steps: what a batch decides, `ranks.any_of` decides.
        """
        optimizers = [self.optimizers[name] for name in names if name not in self._waiting]
        if optimizers:
            ranks.average([each for of in optimizers for group in of.param_groups for each in group["params"]])
        for optimizer in optimizers:
            optimizer.step()

    def wait(self, *, waiting: bool) -> None:
        """Whether `step` leaves what generates, the modules that are averaged, as it is, and trains only the others."""
        kept = {each for module in self.averaged.values() for each in module.parameters()}
        self._waiting = frozenset(
            name
            for name, optimizer in self.optimizers.items()
            if waiting and kept.issuperset(each for group in optimizer.param_groups for each in group["params"])
        )

    def train_only(self, *names: str) -> None:
        """Enable gradients for the parameters of the optimizers `names` only."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.requires_grad_(name in names)

    def spread(self) -> None:
        """Give all ranks the state of rank 0."""
        self.load_state(ranks.spread(self.state()))

    def state(self) -> dict[str, Tensor]:
        """The tensors needed to resume training exactly: those of the modules and of their optimizers."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= flatten(name, module)
        for name, optimizer in self.optimizers.items():
            for index, entry in optimizer.state_dict()["state"].items():
                tensors |= {f"adam-{name}.{index}.{key}": value for key, value in entry.items()}
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`. It has no learning rates; these stay unchanged."""
        for name, module in self.modules.items():
            module.load_state_dict(unflatten(name, state))
        for name, optimizer in self.optimizers.items():
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in unflatten(f"adam-{name}", state).items():
                index, entry = key.split(".", 1)
                entries.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


class Average:
    """The exponential moving average of the weights of a method's networks.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that the initial weights do not dominate the average
    of a short run.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self._networks = networks
        self._decay = decay
        self.copies = {name: deepcopy(network).requires_grad_(False) for name, network in networks.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after a step, counted from 1."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, network in self._networks.items():
            parameters: list[Tensor] = list(network.parameters())
            if parameters:
                torch._foreach_lerp_(list(self.copies[name].parameters()), parameters, weight)
            for copy, buffer in zip(self.copies[name].buffers(), network.buffers(), strict=True):
                copy.copy_(buffer)

    def state(self) -> dict[str, Tensor]:
        """The averaged tensors."""
        return {key: value for name, copy in self.copies.items() for key, value in flatten(name, copy).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        for name, copy in self.copies.items():
            copy.load_state_dict(unflatten(name, state))

    def spread(self) -> None:
        """Give all ranks the averages of rank 0."""
        self.load_state(ranks.spread(self.state()))

    def give(self) -> None:
        """Copy the averages into the networks."""
        for name, network in self._networks.items():
            network.load_state_dict(self.copies[name].state_dict())

    def take(self) -> None:
        """Copy the networks into the averages."""
        for name, network in self._networks.items():
            self.copies[name].load_state_dict(network.state_dict())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Run the block with the averages in the networks, then restore the networks' own weights."""
        own = {name: deepcopy(network.state_dict()) for name, network in self._networks.items()}
        self.give()
        try:
            yield
        finally:
            for name, network in self._networks.items():
                network.load_state_dict(own[name])


def flatten(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, their keys prefixed with `name.`."""
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def unflatten(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose keys start with `name.`, without this prefix."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
