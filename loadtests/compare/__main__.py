"""Our engine beside others, and the service beside its engine and an older commit: `make compare`.

Every side is a process that sleeps while the others are measured; all take turns, over several rounds, and medians
count. What the machine can do at most is measured in the same run. Ends with status 1 if something that must be shown
is not.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests import RESULTS
from loadtests.compare import engines, machine, report, services
from loadtests.compare.older import describe
from loadtests.compare.peers import LLAMA_CPP_FOLDER, VLLM_FOLDER
from loadtests.compare.shapes import NEW_TOKENS, PROMPT_TOKENS, SHAPES, TINY, Shape
from loadtests.compare.wanted import FLOAT32_BYTES, checks
from service.engine.native.build import BuildError
from topk_model.model_folder import DEFAULT_MODEL

#: Seconds for the rounds of all sides, and the number of those of ours alone.
SHAPE_S = {"7M": 90.0, "30M": 170.0, "200M": 190.0, TINY.name: 20.0}
OWN_ROUNDS = {"7M": 4, "30M": 3, "200M": 0, TINY.name: 0}
PARTS = (*(shape.name for shape in SHAPES), "service")
INTERRUPTED = 130


def machine_rates(bench: machine.MachineBench, shapes: Sequence[Shape], seconds: float) -> dict[str, Any]:
    """What the machine does at most: floating-point operations, and bytes read of a buffer as large as each shape's
    weights and of one larger than any cache."""
    sizes = {shape.name: shape.num_matrix_weights * FLOAT32_BYTES for shape in shapes}
    return {
        "flops_per_s": bench.flops_per_s(seconds),
        "read_bytes_per_s": {
            name: bench.read_bytes_per_s(size, seconds)
            for name, size in {**sizes, "large": machine.LARGE_BYTES}.items()
        },
    }


def better(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The higher of each rate: whatever was computed meanwhile made it lower."""
    read, again = one["read_bytes_per_s"], other["read_bytes_per_s"]
    return {
        "flops_per_s": max(one["flops_per_s"], other["flops_per_s"]),
        "read_bytes_per_s": {name: max(rate, again[name]) for name, rate in read.items()},
    }


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; the report as plain fields.

    Raises:
        BuildError: there is no compiler, or no compiled step.
        RuntimeError: the models cannot be written.
    """
    about = machine.facts()
    shapes = [shape for shape in SHAPES if shape.name in given.only]
    if given.quick:
        shapes = [TINY] * bool(shapes)
    skipped: dict[str, str] = {}
    peers = engines.Peers(
        vllm=installed(engines.VLLM, VLLM_FOLDER, given, skipped),
        llama_cpp=installed(engines.LLAMA_CPP, LLAMA_CPP_FOLDER, given, skipped),
    )
    bench = machine.MachineBench(given.num_threads)
    seconds = 0.3 if given.quick else 1.5
    rates = machine_rates(bench, shapes, seconds)
    series: list[engines.Series] = []
    facts: dict[str, dict[str, Any]] = {}
    for shape in shapes:
        pace = engines.Pace(
            rows=engines.ROWS,
            most_rounds=1 if given.quick else given.rounds,
            own_rounds=OWN_ROUNDS[shape.name],
            turn_s=0.05 if given.quick else 0.4,
            shape_s=SHAPE_S[shape.name],
            num_tokens=engines.WARM_TOKENS if given.quick else NEW_TOKENS,
        )
        of_shape, sides, left_out = engines.measure_shape(shape, pace, given.num_threads, peers)
        series += of_shape
        facts |= sides
        skipped |= {f"{name}, {shape.name}": why for name, why in left_out.items()}
    served: list[services.Series] = []
    service_facts: dict[str, Any] = {}
    if "service" in given.only:
        pace_of_service = services.Pace(num_rounds=3, turn_s=1.5)
        if given.quick:
            pace_of_service = services.Pace(num_rounds=1, turn_s=0.4, measured=(("stream", 8), ("traces", 8)))
        served, service_facts, left_out = services.measure_services(
            given.model, given.service_threads, given.against, pace_of_service
        )
        skipped |= left_out
    rates = better(rates, machine_rates(bench, shapes, seconds))
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe(),
        "machine": about | rates,
        "settings": {
            "num_threads": given.num_threads,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": engines.WARM_TOKENS if given.quick else NEW_TOKENS,
            "most_rounds": given.rounds,
            "is_quick": given.quick,
        },
        "versions": {name: side["version"] for name, side in facts.items() if "version" in side},
        "sides": facts,
        "skipped": skipped,
        "engines": [one.fields() for one in series],
        "service_facts": service_facts,
        "services": [one.fields() for one in served],
    }


def installed(name: str, environment: Path, given: argparse.Namespace, skipped: dict[str, str]) -> Path | None:
    """The Python of a peer's environment; None if there is none, or it is not to be measured."""
    if name in given.leave_out:
        skipped[name] = "left out by --leave-out"
    elif not (environment / "installed").exists():
        skipped[name] = "not installed; make compare installs it if it can be had"
    else:
        return environment / "bin" / "python"
    return None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.compare", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (all)")
    add("--against", metavar="COMMIT", help="an older commit, whose service is measured beside")
    add("--rounds", type=int, default=5, help="most rounds for each shape (%(default)s)")
    add("--num-threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine (%(default)s)")
    add(
        "--service-threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1),
        help="of the services' engines, and of the engine alone beside them: by default as the service's (%(default)s)",
    )  # fmt: skip
    add("--model", type=Path, default=DEFAULT_MODEL, help="folder of the model that is served (%(default)s)")
    add("--leave-out", nargs="+", choices=(engines.VLLM, engines.LLAMA_CPP), default=(), help="peers not to measure")
    add("--quick", action="store_true", help="a tiny model and little else, to see that the program works")
    add("--output", type=Path, help="JSON file to write (loadtests/results/compare.json)")
    add("--docs", type=Path, help=f"page to put the tables into, between {report.BEGIN} and {report.END}")
    given = parser.parse_args(arguments)
    for name, value, most in (
        ("--rounds", given.rounds, 50), ("--num-threads", given.num_threads, 1024),
        ("--service-threads", given.service_threads, 1024),
    ):  # fmt: skip
        if not 1 <= value <= most:
            parser.error(f"{name} is {value}, must be 1 to {most}")
    if given.output is None:
        given.output = RESULTS / ("compare-quick.json" if given.quick else "compare.json")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing that was started may go on
    try:
        fields = run(given)
        found = checks(fields)
        fields["checks"] = [check.fields() for check in found]
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(fields, indent=1) + "\n")
        print(report.markdown(fields), end="\n\n")
        if given.docs is not None:
            report.write_documentation(given.docs, fields)
        else:
            report.plot(fields, given.output.with_suffix(".png"))
    except (BuildError, OSError, RuntimeError, ValueError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    for check in found:
        print(check)
    return int(any(check.is_kept is False for check in found))


if __name__ == "__main__":
    sys.exit(main())
