"""Muon for the matrices and kernels, AdamW for the rest: the pair that learns most from few samples on a CPU."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
    """Momentum, made orthogonal, with the step size of AdamW (RMS of an update is 0.2 x the learning rate)."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.momenta = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, rate: float, decay: float = 0.0) -> None:
        for parameter, momentum in zip(self.parameters, self.momenta, strict=True):
            if parameter.grad is None:
                continue
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
            update = orthogonal(ahead).view_as(parameter)
            parameter.mul_(1 - rate * decay).add_(update, alpha=-rate * 0.2 * max(ahead.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Close to U V' of the matrix, by five Newton-Schulz steps."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
    return result
