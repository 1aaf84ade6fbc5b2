"""A step on a device that is not the host: nothing of it is left behind, and the host waits for the device once.

Runs the real step on torch's meta device, which has shapes and no numbers: what mixes it with the host's tensors, or
reads a number of it, is an error there on any machine, as it would be a fault or a hidden wait on a GPU.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from service.engine import runner
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.request import EngineRequest, SamplingParams
from tests.support.tiny import make_request, tiny_config
from topk_model.interventions import Condition, Intervention
from topk_model.modeling import TopKLMForCausalLM

META = torch.device("meta")
EDIT = Intervention(layers=(0, 1), neuron=5, op="add", value=2.0)
EVERY_EDIT = (
    EDIT,
    Intervention(layers=(1,), neuron=7, op="clamp", min=0.0, max=1.0, site="pre_topk"),
    Intervention(layers=(1,), neuron=9, op="set", value=1.0, conditions=(Condition(layer=0, neuron=3, test="active"),)),
)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"sampling": SamplingParams(temperature=0.8, top_p=0.9, top_k=20, min_p=0.01, seed=1)},
    "penalised": {"sampling": SamplingParams(temperature=0.8, presence_penalty=0.5, frequency_penalty=0.5, seed=1)},
    "biased": {"sampling": SamplingParams(temperature=0.0, logit_bias=((5, 1.0),))},
    "edited": {"interventions": EVERY_EDIT},
}


class WaitsForDevice(TorchDispatchMode):
    """Notes every copy that a GPU would make the host wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and not (kwargs or {}).get("non_blocking", len(args) > 2 and args[2]):
            source = args[1] if name == "copy_" else args[0]
            if {source.device.type, result.device.type} == {"cpu", "meta"}:
                self.waits.append(name)
        return result


class Looks:
    """In the place of `to_host`: numbers that mean nothing, and how often they were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
        self.count += 1
        assert {tensor.device for tensor in tensors} <= {META}
        ones = [torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
        return [tensor.numpy() for tensor in ones]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    counted = Looks()
    monkeypatch.setattr(runner, "to_host", counted)
    make = torch.tensor
    with META:  # torch remembers, at the first use of a device, which functions make tensors: it must not be ours
        torch.empty(0)

    def make_here(values: Any, **options: Any) -> torch.Tensor:
        """`torch.tensor` on a GPU waits for it; on the meta device nothing shows that."""
        assert torch.device(options.get("device") or "cpu").type == "cpu", "torch.tensor on the device waits for it"
        return make(values, **options)

    monkeypatch.setattr(torch, "tensor", make_here)
    return counted


def core_on_meta() -> EngineCore:
    with META:
        model = TopKLMForCausalLM(tiny_config()).eval()
    assert model.device == META
    return EngineCore(model, EngineConfig(num_blocks=64))


def run_step(core: EngineCore) -> None:
    pieces = core.scheduler.plan()
    results = core.runner.run(pieces)
    for piece, result in zip(pieces, results, strict=True):
        core._advance(piece, result)


def admit(core: EngineCore, *requests: EngineRequest) -> None:
    for request in requests:
        core.check(request)
        core.add(request)
    for sequence in core.scheduler.admit():
        core.runner.open(sequence)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_stays_on_its_device_and_the_host_waits_for_it_once(kind: str, looks: Looks) -> None:
    core = core_on_meta()
    admit(core, *(make_request(f"r{i}", length=10 + i, **KINDS[kind]) for i in range(3)))
    for _ in range(3):  # prompts, then decoding
        looks.count = 0
        with WaitsForDevice() as watched:
            run_step(core)
        assert looks.count == 1
        assert watched.waits == []


def test_rows_of_every_kind_in_one_batch_cost_no_further_look(looks: Looks) -> None:
    core = core_on_meta()
    admit(core, *(make_request(kind, **fields) for kind, fields in KINDS.items()))
    run_step(core)
    admit(core, make_request("late", length=70))  # its prompt is read beside the others' decoding
    looks.count = 0
    with WaitsForDevice() as watched:
        run_step(core)
    assert (looks.count, watched.waits) == (1, [])


def test_a_step_that_waited_would_be_noticed() -> None:
    with WaitsForDevice() as watched:
        torch.zeros(3).to(META)
        torch.zeros(3).to(META, non_blocking=True)
    assert len(watched.waits) == 1
    there = torch.zeros(3, device=META)
    for read in (torch.Tensor.tolist, torch.Tensor.nonzero, lambda t: t[t > 0], lambda t: bool(t.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(there)
    with pytest.raises(RuntimeError):
        torch.zeros(3) + there
