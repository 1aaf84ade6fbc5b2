"""The comparison with other engines: its arithmetic, what it refuses to count, and the program on a tiny model."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadtests.compare import peers, report
from loadtests.compare.engines import CELLS, LARGE, OURS, VLLM, VLLM_BF16, cells_of
from loadtests.compare.machine import MachineBench, facts
from loadtests.compare.measured.engine_side import EngineBench, Run, check, edits
from loadtests.compare.measured.worker import Turn, repeat
from loadtests.compare.older import checkout, git
from loadtests.compare.services import ENGINE, NEW, OLD
from loadtests.compare.shapes import BY_NAME, PROMPT_TOKENS, SHAPES, TINY, prompts
from loadtests.compare.sides import Plan, Sides
from loadtests.compare.wanted import Report, checks
from service.engine.request import EngineRequest, FinishEvent
from tests.support.tools import ROOT


def engine(shape: str, side: str, case: str, rows: int, rounds: list[float], decode: float | None = None) -> Any:
    return {
        "shape": shape, "side": side, "case": case, "num_rows": rows, "rounds": rounds,
        "tokens_per_s": sorted(rounds)[len(rounds) // 2], "decode_tokens_per_s": decode,
    }  # fmt: skip


def service(kind: str, in_flight: int, who: str, rate: float, first_token_ms: float | None = None) -> Any:
    return {
        "kind": kind, "in_flight": in_flight, "who": who, "tokens_per_s": rate, "first_token_ms": first_token_ms,
    }  # fmt: skip


def fields(engines: list[Any], services: list[Any]) -> dict[str, Any]:
    """A report of a machine that reads 30 GB/s and does 300 GFLOP/s."""
    names = [shape.name for shape in SHAPES]
    return {
        "commit": "0" * 40,
        "machine": {
            "processor": "A processor", "instructions": "avx512", "num_cpus": 2, "load_before": 0.1,
            "flops_per_s": 300e9, "read_bytes_per_s": dict.fromkeys([*names, "large"], 30e9),
        },
        "settings": {"num_threads": 2, "prompt_tokens": 32, "new_tokens": 64},
        "versions": {"vLLM": "1.2"},
        "skipped": {"llama.cpp": "not installed"},
        "engines": engines,
        "service_facts": {"commits": {NEW: "1" * 40, OLD: "2" * 40}, "num_threads": 1},
        "services": services,
    }  # fmt: skip


def value(found: dict[str, Any], what: str) -> tuple[float | None, bool | None]:
    (one,) = [check for check in checks(found) if what in check.what]
    return one.value, one.is_kept


def test_ratios_to_others_are_of_edited_and_traced_rows_and_know_their_bounds() -> None:
    found = fields(
        [
            engine("30M", OURS, "float32 plain", 8, [900.0, 990.0, 1000.0]),
            engine("30M", OURS, "float32 traced", 8, [500.0, 600.0, 700.0]),
            engine("30M", OURS, "int8 traced", 8, [800.0]),
            engine("30M", VLLM, "float32", 8, [200.0]),
            engine("30M", VLLM_BF16, "bfloat16", 8, [400.0]),
        ],
        [],
    )
    assert value(found, "30M, 8 rows: times vLLM, both") == (3.0, True)
    assert value(found, "30M, 8 rows: times vLLM, each with its best") == (2.0, False)
    assert value(found, "30M, 32 rows: times vLLM, both") == (None, None)


def test_the_cost_of_edits_is_the_median_of_rounds_and_the_worst_case_counts() -> None:
    found = fields(
        [
            engine("7M", OURS, "float32 plain", 1, [100.0, 200.0, 100.0]),
            engine("7M", OURS, "float32 edited", 1, [99.0, 198.0, 99.0]),
            engine("7M", OURS, "float32 traced", 1, [94.0, 100.0, 96.0]),
        ],
        [],
    )
    worst, is_kept = value(found, "7M, 1 row: cost")
    assert (worst, is_kept) == (pytest.approx(0.06), False)


def test_shares_of_the_machine_are_of_bytes_and_operations() -> None:
    shape = BY_NAME["30M"]
    # A token every 10 ms needs its bytes from memory at a third of 30 GB/s if they are 100 MB.
    found = Report(
        fields(
            [
                engine("30M", OURS, "float32 plain", 1, [1.0], decode=100.0),
                engine("30M", OURS, "float32 plain", 32, [1.0], decode=4000.0),
                engine("30M", OURS, "wide plain", 32, [1.0], decode=2000.0),
            ],
            [],
        )
    )
    assert found.memory_share("30M") == pytest.approx(100 * 4 * shape.num_fewest_weights / 30e9)
    # The wider MLPs' products cost 1/4000 s a token.
    assert found.products_share("30M", 32) == pytest.approx(2 * 8 * 3 * 512 * 1408 * 4000 / 300e9)
    assert found.step_share("30M", 32) == pytest.approx(2 * shape.num_fewest_weights * 4000 / 300e9)


def test_shapes_have_the_size_of_their_names() -> None:
    for shape, millions in zip(SHAPES, (7, 30, 200), strict=True):
        assert shape.num_matrix_weights / 1e6 == pytest.approx(millions, rel=0.05)
        wider = shape.widened()
        assert wider.num_matrix_weights - shape.num_matrix_weights == shape.num_widening_weights
        assert {(cell.side, cell.case) for cell in cells_of(shape)} == (
            {(cell.side, cell.case) for cell in CELLS} if shape.is_widened else LARGE
        )


def test_the_service_is_checked_against_its_engine_and_the_old_commit() -> None:
    found = fields(
        [],
        [
            service("stream", 32, ENGINE, 6000), service("stream", 32, NEW, 4000, 100),
            service("stream", 32, OLD, 1000, 400), service("traces", 32, ENGINE, 1000),
            service("traces", 32, NEW, 790), service("whole", 1, ENGINE, 100), service("whole", 1, NEW, 86),
        ],
    )  # fmt: skip
    assert value(found, "HTTP, 32 in flight: times the old commit, streams") == (4.0, True)
    assert value(found, "first token") == (0.25, True)
    assert value(found, "share of the engine alone, traces") == (0.79, False)
    assert value(found, "HTTP, 1 in flight: share of the engine alone, whole") == (0.86, True)


def test_the_tables_go_between_the_marks_of_a_page_and_the_picture_beside_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    found = fields(
        [engine("7M", OURS, "float32 traced", rows, [1234.0 * rows]) for rows in (1, 8, 32)],
        [service("whole", 8, ENGINE, 1000), service("whole", 8, NEW, 900), service("whole", 8, OLD, 300)],
    )
    assert report.write_documentation(page, found) == (page, tmp_path / report.PICTURE)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old\n" not in text
    assert "| 1234 | 9872 | 39488 |" in text
    assert "| HTTP, whole replies | 8 | 1000 | 900 | 0.90 | 300 | 3.0 |" in text
    assert "llama.cpp: not installed" in text
    assert (tmp_path / report.PICTURE).read_bytes().startswith(b"\x89PNG")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold"):
        report.write_documentation(page, found)


def test_a_turn_repeats_with_other_prompts_until_its_time_is_over() -> None:
    seeds = []

    def generate(case: str, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        seeds.append(seed)
        time.sleep(0.02)
        return num_rows * num_tokens, 10, 0.01

    done = repeat(generate, Turn(case="plain", num_rows=2, num_tokens=5, seed=7, min_s=0.05))
    assert seeds == list(range(7, 7 + len(seeds)))
    assert len(seeds) >= 2
    assert done.num_tokens == 10 * len(seeds)
    assert done.decode_tokens_per_s == pytest.approx(1000)
    assert done.elapsed_s >= 0.05
    assert prompts(TINY, 2, 7) == prompts(TINY, 2, 7) != prompts(TINY, 2, 8)
    assert {len(ids) for ids in prompts(TINY, 2, 7)} == {PROMPT_TOKENS}


@pytest.mark.parametrize("case", ["plain", "edited", "varied", "traced", "sampled"])
def test_the_engine_does_all_that_a_case_asks(case: str) -> None:
    bench = EngineBench(TINY, "float32", 1, "torch")
    num_tokens, num_decoded, decode_s = bench.generate(case, 5, 6, 0)
    bench.stop()
    assert num_tokens == 30
    assert 0 < num_decoded <= 30
    assert decode_s > 0


def test_rows_have_other_edits_than_their_neighbours_and_each_edits_every_topk_layer() -> None:
    sets = [edits(TINY, "varied", row) for row in range(32)]
    assert len(set(sets)) == 32
    assert {intervention.layers for one in sets for intervention in one} == {(0, 1)}
    assert {intervention.op for one in sets for intervention in one} == {"set", "add", "clamp"}


def test_a_run_that_left_something_out_is_no_measurement() -> None:
    request = EngineRequest(request_id="0", prompt_ids=(3,), max_tokens=4, interventions=edits(TINY, "edited", 0))
    ended = Run(num_open=0, num_tokens=4, finishes=[FinishEvent(reason="length")])
    with pytest.raises(RuntimeError, match="no receipt"):
        check(ended, [request], 2)
    short = Run(num_open=0, num_tokens=3, finishes=[FinishEvent(reason="error", error="a fault")])
    with pytest.raises(RuntimeError, match="3 tokens for 1 rows of 4: error a fault"):
        check(short, [request], 2)


def test_a_side_that_cannot_start_or_fails_is_left_out_and_the_report_says_why() -> None:
    missing = Plan(name="missing", module="vllm_side", arguments=("tiny", "/nowhere", "float32", "1"))
    with Sides([missing]) as sides:
        assert not sides.has("missing")
    assert "No module named 'vllm'" in sides.skipped["missing"]


@pytest.mark.long
def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "environment"
    assert not peers.install("Peer", folder, lambda python, _: peers.pip(python, "--no-index", "no-such-peer"), [])
    assert "Peer is left out, since it cannot be installed: ERROR" in capsys.readouterr().err
    assert peers.install("Peer", folder, lambda python, _: None, [])
    assert peers.install("Peer", folder, lambda python, _: pytest.fail("it is there"), [])


def test_the_machine_reads_and_multiplies_at_rates_that_can_be() -> None:
    bench = MachineBench(1)
    assert 1e8 < bench.read_bytes_per_s(1 << 22, 0.03) < 1e13
    assert 1e8 < bench.flops_per_s(0.03) < 1e13
    assert facts()["processor"]


@pytest.mark.long
def test_an_older_commit_runs_its_own_code_with_the_packages_of_the_present(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository")
    with checkout("HEAD") as old:
        program = "import service, torch; print(service.__path__[0], torch.__file__)"
        command = [str(old.python), "-c", program]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={}, check=True)
        code, torch_file = done.stdout.split()
        assert Path(code).parent == old.folder != ROOT
        assert Path(torch_file).is_relative_to(sys.prefix)
        assert (old.python.parent / "topk").exists()
    assert str(old.folder) not in git("worktree", "list")


@pytest.mark.slow
def test_the_whole_program_on_a_tiny_model(tmp_path: Path) -> None:
    output = tmp_path / "compare.json"
    command = [sys.executable, "-m", "loadtests.compare", "--quick", "--only", "7M", "--output", str(output)]
    command += ["--leave-out", "vLLM", "llama.cpp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    measured = {(series["side"], series["case"], series["num_rows"]) for series in found["engines"]}
    expected = {cell for cell in CELLS if cell.side not in (VLLM, VLLM_BF16, "llama.cpp")}
    assert measured == {(c.side, c.case, n) for c in expected for n in ((1, 8, 32) if c.is_for_few else (32,))}
    assert all(series["tokens_per_s"] > 0 for series in found["engines"])
    assert set(found["skipped"]) == {"vLLM", "llama.cpp"}
    assert {check["is_kept"] for check in found["checks"]} == {None}  # a tiny model must show nothing
    assert "| **ours**, int8, plain |" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_service_beside_its_engine_and_a_commit(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository")
    output = tmp_path / "compare.json"
    command = [sys.executable, "-m", "loadtests.compare", "--quick", "--only", "service", "--output", str(output)]
    done = subprocess.run([*command, "--against", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(output.read_text())
    assert found["skipped"].keys() <= {"vLLM", "llama.cpp"}, done.stderr
    assert {(s["kind"], s["who"]) for s in found["services"]} == {
        (kind, who) for kind in ("stream", "traces") for who in (ENGINE, NEW, OLD)
    }
    assert all(s["tokens_per_s"] > 0 for s in found["services"])
    assert all(s["first_token_ms"] > 0 for s in found["services"] if s["kind"] == "stream" and s["who"] != ENGINE)
