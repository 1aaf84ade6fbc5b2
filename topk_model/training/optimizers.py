"""Which optimiser each parameter gets, and Muon: orthogonalised momentum (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).

torch.optim.Muon orthogonalises in bfloat16, which takes a CPU without such arithmetic twenty times as long as float32.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, distributed

from topk_model.modeling import TopKLMForCausalLM

#: Coefficients of the iteration X <- a X + b (X X') X + c (X X')^2 X, which drives all singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Each step has about the size of an AdamW step of the same learning rate (Liu et al. 2025, arXiv 2502.16982).

    In a run of several processes each orthogonalises its share of the matrices, and all of them take every update.

    Args:
        parameters: matrices; every process holds the same gradients.
        lr: learning rate.
        weight_decay: decoupled, as in AdamW.
        momentum: fraction of the old momentum that is kept; Nesterov's form is used.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is needed here
        for group in self.param_groups:
            lr, keep = group["lr"], group["momentum"]
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - keep)
                directions.append(parameter.grad.lerp(state["momentum"], keep))
            for parameter, update in zip(parameters, orthogonalise_all(directions), strict=True):
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * lr * math.sqrt(max(parameter.shape)))


def orthogonalise_all(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonalise` each matrix; several processes that hold the same ones share the work."""
    world, rank = (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
    if world == 1:
        return [orthogonalise(matrix) for matrix in matrices]
    flat = torch.cat(
        [
            orthogonalise(matrix).flatten() if i % world == rank else matrix.new_zeros(matrix.numel())
            for i, matrix in enumerate(matrices)
        ]
    )
    distributed.all_reduce(flat)  # every other process adds zero: the sum is exact
    parts = flat.split([matrix.numel() for matrix in matrices])
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


def orthogonalise(matrix: Tensor) -> Tensor:
    """Roughly U V' of `matrix` = U S V', by Newton-Schulz iterations: singular values end between 0.7 and 1.2."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def make_optimizers(
    model: TopKLMForCausalLM, lr: float, muon_lr: float | None, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW on everything, or, given `muon_lr`, Muon on the matrices of the blocks and AdamW on the rest.

    Weight decay applies to matrices, never to vectors, and with Muon not to the embedding.
    """
    blocks = [p for p in model.model.layers.parameters() if p.ndim >= 2]
    in_blocks = {id(p) for p in blocks}
    others = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in in_blocks]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    decaying = [] if muon_lr is not None else [{"params": blocks + others, "weight_decay": weight_decay}]
    staying = {"params": vectors + (others if muon_lr is not None else []), "weight_decay": 0.0}
    adamw = torch.optim.AdamW([*decaying, staying], lr=lr, betas=(0.9, 0.95), fused=True)
    return [adamw] if muon_lr is None else [adamw, Muon(blocks, lr=muon_lr, weight_decay=weight_decay)]
