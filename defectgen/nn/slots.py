"""Carries the tensors of a trained model over to a model of other domains, categories, products or channels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["domains", "categories", "products", "inputs", "outputs"]
Names = Mapping[Kind, Sequence[str]]
"""The names of each kind, in the order of a model. The first domain is that of the normals. `inputs` and `outputs` are
the channels of the images that a layer takes or makes."""


@dataclass(frozen=True)
class Slots:
    """Tensors of which each name of a kind has a part of its own.

    `pattern` matches all of a tensor's name in `Networks.state`, as `G.embed.weight`. Along `axis`, the parts are all
    there is, of equal sizes; or one entry each at the start or the end, or from an index on, beside others. With a
    group in the pattern, each name has a tensor of its own instead, and the group is its index.
    """

    pattern: str
    of: Kind
    axis: int = 0
    where: Literal["all", "start", "end"] | int = "all"
    equalized: bool = False
    """The layer divides its weights by the root of the axis's length when it uses them, as `stylegan2.EqualLinear`."""

    def carried(self, tensor: Tensor, before: Sequence[str], now: Sequence[str]) -> Tensor:
        """The tensor of a model with the names `now`."""
        length = tensor.shape[self.axis]
        own = length if self.where == "all" else len(before)
        start = self.where if isinstance(self.where, int) else length - own if self.where == "end" else 0
        first, middle, last = tensor.split([start, own, length - start - own], dim=self.axis)
        parts = self.parts(middle.chunk(len(before), dim=self.axis), before, now)
        made = torch.cat([first, *parts, last], dim=self.axis)
        return made * (made.shape[self.axis] / length) ** 0.5 if self.equalized else made

    def parts(self, parts: Sequence[Tensor], before: Sequence[str], now: Sequence[str]) -> list[Tensor]:
        """The part of each name in `now`: its own if it is among `before`, or the mean of the others'.

        New domains are defects: the part of the normals, which stays the first, does not enter the mean. An image in
        gray is one with equal colors: then a layer takes the sum of what it takes of the colors.
        """
        anchors = int(self.of == "domains")
        known = dict(zip(before[anchors:], parts[anchors:], strict=True))
        mean = torch.stack(list(known.values())).mean(dim=0)
        if self.of == "inputs":
            mean = mean * (len(before) / len(now))
        return [*parts[:anchors], *(known.get(name, mean) for name in now[anchors:])]


def carried(tensors: Mapping[str, Tensor], slots: Sequence[Slots], before: Names, now: Names) -> dict[str, Tensor]:
    """The tensors of a model with the names `before`, for one with the names `now`."""
    made = dict(tensors)
    for slot in slots:
        several: dict[tuple[str, str], dict[int, Tensor]] = {}
        old, new = before[slot.of], now[slot.of]
        for name in list(made):
            found = re.fullmatch(slot.pattern, name)
            if found is None:
                continue
            if found.re.groups:
                several.setdefault((name[: found.start(1)], name[found.end(1) :]), {})[int(found[1])] = made.pop(name)
            else:
                made[name] = slot.carried(made[name], old, new)
        for (start, end), parts in several.items():
            for i, part in enumerate(slot.parts([parts[i] for i in range(len(parts))], old, new)):
                made[f"{start}{i}{end}"] = part
    return made


def last_conv(name: str, of: Kind) -> Slots:
    """The slots of a last convolution with spectral normalization, whose outputs are the names; `name` is a pattern."""
    return Slots(rf"{name}\.(?:bias|parametrizations\.weight\.(?:original|0\._u))", of)
