"""The law that the service rests on: a request's numbers do not depend on its company, to the bit."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.request import FinishEvent
from tests.support.engine.random_requests import random_request
from tests.support.exact import bits
from tests.support.tiny import run, tiny_core, tiny_model
from topk_model.packing import PackedLinear, padded_rows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bitwise invariance is promised on CPU only")


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def core(request):
    return tiny_core(num_threads=request.param)


@pytest.mark.long
def test_64_requests_at_once_equal_each_alone(core):
    rng = random.Random(1)
    requests = [random_request(rng, str(i)) for i in range(64)]
    together = run(core, *requests)
    assert core.num_steps < sum(r.max_tokens + 1 for r in requests)  # they did run together
    for request in requests:
        assert bits(run(core, request)[request.request_id]) == bits(together[request.request_id])
    assert core.scheduler.blocks.num_free == core.config.num_blocks


@pytest.mark.long
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 12), chunk=st.sampled_from([16, 64]))
def test_any_mixture_equals_each_alone(seed, count, chunk):
    # Few sequences and a small step: waiting, admission and pieces of prompts fall differently than for one alone.
    core = tiny_core(max_num_seqs=5, max_step_tokens=5 + chunk, prefill_chunk=chunk, num_threads=2)
    rng = random.Random(seed)
    requests = [random_request(rng, str(i)) for i in range(count)]
    together = run(core, *requests)
    for request in requests:
        assert isinstance(together[request.request_id][-1], FinishEvent)
        assert bits(run(core, request)[request.request_id]) == bits(together[request.request_id])


@pytest.mark.parametrize(("out_features", "in_features"), [(384, 384), (128, 384), (512, 384), (384, 512), (4096, 384)])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_packed_product_of_a_row_does_not_depend_on_the_rows_beside_it(out_features, in_features, num_threads):
    torch.manual_seed(0)
    layer = PackedLinear(torch.randn(out_features, in_features) * 0.05, num_threads)
    rows = torch.randn(256, in_features)
    alone = torch.cat([layer(rows[i : i + 1]) for i in range(256)])
    for count in (2, 3, 7, 16, 33, 64, 65, 128, 200, 256):
        for first in (0, 256 - count):
            assert torch.equal(layer(rows[first : first + count]), alone[first : first + count])


def test_the_law_can_be_broken():
    """Without packed products the same comparison fails, so it does look at the bits that matter."""
    core = tiny_core(tiny_model(hidden_size=384, num_attention_heads=6), num_threads=1, cpu_step="torch")
    for module in core.runner.model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, PackedLinear):
                dense = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                setattr(module, name, dense)
    rng = random.Random(2)
    requests = [random_request(rng, str(i)) for i in range(24)]
    together = run(core, *requests)
    assert any(bits(run(core, r)[r.request_id]) != bits(together[r.request_id]) for r in requests)


def test_products_are_made_with_few_numbers_of_rows() -> None:
    """Each number of rows costs memory that stays, so it is the numbers that must stay few."""
    padded = [padded_rows(num_rows) for num_rows in range(1, 257)]
    assert all(rows <= more <= 1.125 * rows for rows, more in enumerate(padded, 1))
    assert len(set(padded)) == 56
    assert padded_rows(257) == 264
    layer = PackedLinear(torch.randn(24, 16), num_threads=1)
    x = torch.randn(3, 7, 16)
    assert torch.equal(layer(x), torch.stack([layer(part) for part in x]))
    assert layer(x[0, 0]).shape == (24,)
    assert layer(x[:0]).shape == (0, 7, 24)
