"""Muon, and which parameters it gets."""

import pytest
import torch

from tests.support.tiny import tiny_model
from topk_model.training.optimizers import Muon, make_optimizers, orthogonalise


@pytest.mark.parametrize("shape", [(48, 48), (20, 48), (48, 20)])
def test_orthogonalising_keeps_directions_and_levels_sizes(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    sizes = torch.diag(u.T @ result @ v.T)
    assert ((sizes > 0.6) & (sizes < 1.3)).all()
    assert torch.allclose(result, u @ torch.diag(sizes) @ v, atol=1e-3)
    assert s.max() / s.min() > 2


def test_a_step_goes_downhill_and_has_about_the_size_of_one_of_adamw():
    parameter = torch.nn.Parameter(torch.zeros(32, 64))
    target = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    ((parameter - target) ** 2).sum().backward()
    Muon([parameter], lr=0.01, weight_decay=0.0).step()
    assert (parameter * target).sum() > 0
    # An AdamW step moves each number by about the learning rate, times 0.2 to 0.4 once gradients vary.
    assert parameter.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_weight_decay_pulls_to_zero_without_a_gradient_of_its_own():
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    parameter.grad = torch.zeros(8, 8)
    Muon([parameter], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(parameter, torch.full((8, 8), 0.95))


def test_every_parameter_has_one_optimizer():
    model = tiny_model().cpu()
    for muon_lr in (None, 1e-3):
        optimizers = make_optimizers(model, 1e-3, muon_lr, 0.1)
        taken = [id(p) for one in optimizers for group in one.param_groups for p in group["params"]]
        assert len(taken) == len(set(taken))
        assert set(taken) == {id(p) for p in model.parameters()}
    muon = optimizers[1]
    names = {id(p): name for name, p in model.named_parameters()}
    own = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    assert len(own) == 7 * 4
    assert all(".layers." in name and "norm" not in name for name in own)
