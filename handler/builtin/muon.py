"""Muon for the matrices and kernels, AdamW for the rest: the pair that learns most from few samples."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from handler.builtin.networks import precision

MOMENTUM = 0.95


def split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters for Muon and those for AdamW: embeddings, norms, biases and thin kernels go to AdamW."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            flat = parameter.flatten(1) if parameter.ndim > 1 else None
            wide = flat is not None and min(flat.shape) >= 32 and id(parameter) not in embeddings
            (matrices if wide else rest).append(parameter)
    return matrices, rest


class Muon:
    """Momentum, made orthogonal, with the step size of AdamW (RMS of an update is 0.2 x the learning rate).

    Matrices of one shape go through it together: one by one, a GPU would wait for its next order most of the time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        alike: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            rows, columns = parameter.flatten(1).shape
            alike[rows, columns].append(parameter)
        self.groups = list(alike.values())
        self.momenta = [torch.zeros_like(_stacked(group)) for group in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """After `backward`; every parameter must have a gradient."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradients = torch.stack([_gradient(parameter).flatten(1) for parameter in group])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonal(gradients.lerp(momentum, MOMENTUM))
            for parameter, update in zip(group, updates, strict=True):
                parameter.add_(update.reshape(parameter.shape), alpha=-rate * 0.2 * max(update.shape) ** 0.5)


def _stacked(group: list[nn.Parameter]) -> Tensor:
    return torch.stack([parameter.detach().flatten(1) for parameter in group])


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def orthogonal(matrices: Tensor) -> Tensor:
    """Close to U V' of each matrix of (count, rows, columns), by five Newton-Schulz steps."""
    x = matrices.to(precision(matrices.device))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result
