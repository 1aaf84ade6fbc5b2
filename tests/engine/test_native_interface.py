"""The compiled step's C interface: whatever stands in its tables, it answers with a status and reads no further."""

import ctypes
import random

import numpy as np
import pytest

from service.engine.native import binding, build
from service.engine.native.binding import NativeEngine, NativeError, Step
from tests.support.engine.engine_checks import force
from tests.support.engine.native import GOOD
from tests.support.tiny import make_request, run, tiny_core, tokens

try:
    LIBRARY = binding.load_library(build.library())
except build.BuildError as error:
    pytest.skip(f"no compiled step: {error}", allow_module_level=True)


@pytest.fixture
def core():
    core = tiny_core(cpu_step="compiled", num_blocks=32, max_num_seqs=4)
    for i in range(2):
        request = make_request(str(i), length=20, logprobs=2, interventions=(force(),) * i)
        core.add(request)
    for sequence in core.scheduler.admit():
        core.runner.open(sequence)
    pieces = core.scheduler.plan()
    core.runner._lay_out(pieces, [None] * len(pieces))  # blocks once in their table are not written again
    return core


def status_of(core) -> int:
    try:
        core.runner.run(core.scheduler.plan())
    except NativeError as error:
        return error.status
    return 0


BAD_TABLES = {
    "block past the end": ("block_tables", 7, lambda t: t.__setitem__((0, 0), 33)),
    "negative block": ("block_tables", 7, lambda t: t.__setitem__((0, 1), -1)),
    "the null block": ("block_tables", 7, lambda t: t.__setitem__((1, 0), 0)),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_block_is_refused_and_the_engine_lives_on(core, name):
    table, status, spoil = BAD_TABLES[name]
    assert status_of(core) == 0  # a table is filled when a sequence has got blocks
    good = getattr(core.runner, table).copy()
    spoil(getattr(core.runner, table))
    assert status_of(core) == status
    getattr(core.runner, table)[:] = good
    assert status_of(core) == 0


@pytest.mark.parametrize(
    ("table", "at", "value"),
    [
        ("ints", (1, 1, 0, 0), 6), ("ints", (1, 1, 0, 0), -1), ("ints", (1, 1, 0, 1), 64), ("ints", (1, 1, 0, 1), -1),
        ("ints", (1, 1, 0, 1), 2**62), ("ints", (1, 1, 0, 8), 1), ("ints", (1, 1, 0, 8), -1),
        ("num_edits", (1, 1), 65), ("num_edits", (1, 0), -1), ("num_interventions", (1,), 65),
        ("num_interventions", (1,), -1), ("num_conditions", (1, 1), 9), ("num_conditions", (1, 1), -1),
    ],
)  # fmt: skip
def test_a_bad_edit_is_refused(core, table, at, value):
    target = getattr(core.runner.edits, table)
    target[at] = value
    assert status_of(core) == 8


@pytest.mark.parametrize("condition", [(4, 0, 0), (-1, 0, 0), (1, 2, 0), (1, -1, 0), (3, 0, 64), (2, 0, -1)])
def test_a_bad_condition_is_refused(core, condition):
    edits = core.runner.edits
    edits.num_conditions[1, 1] = 1
    for column, value in enumerate(condition):
        edits.conditions[1, 1, 0, 0, column] = value
    assert status_of(core) == 8


@pytest.mark.parametrize(
    ("rule", "value"),
    [("temperature", np.nan), ("temperature", -1.0), ("temperature", np.inf), ("top_p", np.nan), ("top_k", 0),
     ("top_k", -5), ("min_p", -0.5), ("presence", np.inf), ("frequency", np.nan)],
)  # fmt: skip
def test_a_bad_sampling_rule_is_refused(core, rule, value):
    getattr(core.runner.sampler, rule)[0] = value
    assert status_of(core) == 9


def step_fields(core) -> Step:
    core.runner.run(core.scheduler.plan())
    return core.runner._step


@pytest.mark.parametrize("seed", range(8))
def test_random_fields_of_a_step_are_refused_or_run(core, seed):
    """Every field of a step and of its pieces at random; what is let through reads no memory but its own, of which the
    run under sanitizers is the witness."""
    runner, rng = core.runner, random.Random(seed)
    step = step_fields(core)
    pieces = runner._pieces[:2].copy()
    token_ids = runner._token_ids.copy()
    scores = np.zeros((4, 3), dtype=np.int32)
    step.scores = scores.ctypes.data
    room_ids, room_values = np.zeros(64, dtype=np.int32), np.zeros(64, dtype=np.float32)
    step.top_ids, step.top_logprobs = room_ids.ctypes.data, room_values.ctypes.data
    numbers = [-(2**31), -1, 0, 1, 2, 3, 19, 20, 21, 64, 101, 512, 513, 2**31 - 1]
    refused = 0
    for _ in range(200):
        runner._pieces[:2], runner._token_ids[:] = pieces, token_ids
        step.struct_bytes, step.num_pieces, step.num_rows, step.num_scores = ctypes.sizeof(Step), 2, 40, 4
        step.top_room, step.trace_room = 64, len(runner._trace_values)
        scores[:] = [(rng.randrange(40), rng.randrange(101), rng.randrange(5)) for _ in range(4)]
        for _ in range(rng.randrange(1, 4)):
            match rng.randrange(5):
                case 0:
                    runner._pieces[rng.randrange(2), rng.randrange(8)] = rng.choice(numbers)
                case 1:
                    runner._token_ids[rng.randrange(40)] = rng.choice(numbers)
                case 2:
                    scores[rng.randrange(4), rng.randrange(3)] = rng.choice(numbers)
                case 3:
                    name = rng.choice(["num_pieces", "num_rows", "num_scores", "struct_bytes"])
                    # Counts that these arrays hold, or that no array could.
                    setattr(step, name, rng.choice([-1, 0, 1, 2, 2**40, -(2**63)]))
                case 4:
                    setattr(step, rng.choice(["top_room", "trace_room"]), rng.choice([-1, 0, 1, 20, 64]))
        try:
            runner.engine.run(step)
        except NativeError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["pieces", "token_ids", "drawn_ids", "is_finite", "logprobs"])
def test_a_missing_array_is_refused(core, name):
    step = step_fields(core)
    setattr(step, name, None)
    with pytest.raises(NativeError, match="missing or does not fit"):
        core.runner.engine.run(step)


@pytest.mark.parametrize(
    "bad",
    [{name: value} for name in GOOD for value in (-1, -(2**31)) if name != "rms_norm_eps"]
    + [{"hidden_size": 0}, {"topk_k": 17}, {"num_heads": 3, "num_kv_heads": 2}, {"head_dim": 7}, {"block_size": 8},
       {"vocab_size": 2**31 - 1}, {"num_topk_layers": 2}, {"storage": 3}, {"num_threads": 10**6},
       {"rms_norm_eps": 0.0}, {"rms_norm_eps": float("nan")}, {"max_edits": 257}],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(bad):
    with pytest.raises(NativeError, match="does not fit"):
        NativeEngine(LIBRARY, **GOOD | bad)


def test_sizes_beyond_all_memory_are_refused():
    with pytest.raises(NativeError, match="memory"):
        NativeEngine(LIBRARY, **GOOD | {"vocab_size": 2**24, "hidden_size": 2**24})


def test_weights_of_another_shape_are_refused():
    engine = NativeEngine(LIBRARY, **GOOD)
    for name, shape in {"q": (16, 8), "k": (16, 16), "o": (17, 16), "norm1": (8,), "unembedding": (16, 32)}.items():
        with pytest.raises(NativeError, match="does not fit"):
            engine.load(name, np.zeros(shape, dtype=np.float32))
    with pytest.raises(NativeError, match="does not fit"):
        engine.load("q", np.zeros((16, 16), dtype=np.float32), layer=1)
    with pytest.raises(NativeError, match="weights, tables"):
        engine.run(Step(struct_bytes=ctypes.sizeof(Step)))


def test_int8_refuses_a_weight_that_is_not_finite():
    engine = NativeEngine(LIBRARY, **GOOD | {"storage": 2})
    with pytest.raises(NativeError, match="not finite"):
        engine.load("up", np.full((16, 16), np.nan, dtype=np.float32))


def test_structures_of_another_version_are_refused():
    step = Step(struct_bytes=ctypes.sizeof(Step) - 8)
    with pytest.raises(NativeError, match="different versions"):
        NativeEngine(LIBRARY, **GOOD).run(step)


def test_threads_end_with_their_engine():
    def num_threads() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Threads"))

    before = num_threads()
    engine = NativeEngine(LIBRARY, **GOOD | {"num_threads": 5})
    assert num_threads() == before + 4
    engine.close()
    assert num_threads() == before


def test_a_sequence_may_reach_past_the_positions_of_the_model():
    request = make_request(length=200, max_tokens=100)  # the tiny model names 256
    ours, theirs = (run(tiny_core(cpu_step=step), request)["r"] for step in ("compiled", "torch"))
    assert tokens(ours) == tokens(theirs)
