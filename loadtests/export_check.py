"""A long export, killed halfway and resumed, against an uninterrupted one: `python -m loadtests.export_check --help`.

The two files must be the same, byte for byte, and the exporting process must not grow with the number of texts.
"""

import argparse
import filecmp
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from loadtests import RESULTS
from loadtests.inputs import check_local, plain_texts
from service.client.export import Export

MAX_TEXTS = 1_000_000
SAMPLE_PERIOD_S = 0.25
#: Memory counts as flat if the second half of the work takes at most this many times the memory of the first half.
MAX_GROWTH = 1.1
#: If joining takes less time than this, its halves are not compared.
MIN_JOINING_SAMPLES = 8
#: This share of the parts is left out of the comparison: imports and the first batches.
WARM_UP = 0.1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The exporting process at one time."""

    elapsed_s: float
    num_parts: int  # batches that are on disk
    rss_bytes: int
    private_bytes: int  # of these, bytes that are not mapped files


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peaks of the resident memory of one export, in bytes."""

    first_half: int  # of the batches
    second_half: int
    joining_first_half: int  # of the time in which the parts are joined
    joining_second_half: int  # 0 if that time was too short to have halves
    peak: int  # as reported by the kernel

    @property
    def growth(self) -> float:
        return self.second_half / self.first_half

    @property
    def growth_in_joining(self) -> float | None:
        return self.joining_second_half / self.joining_first_half if self.joining_second_half else None

    @property
    def is_flat(self) -> bool:
        return self.growth <= MAX_GROWTH and (self.growth_in_joining or 0.0) <= MAX_GROWTH


def sample(pid: int, began: float, job: Export) -> tuple[Sample, int] | None:
    """The process now, and its peak in bytes so far; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }
    if "VmRSS" not in sizes:
        return None
    num_parts = len(list(job.parts.glob("part-*.arrow")))
    now = Sample(
        elapsed_s=time.monotonic() - began,
        num_parts=num_parts,
        rss_bytes=sizes["VmRSS"],
        private_bytes=sizes["RssAnon"],
    )
    return now, sizes["VmHWM"]


def run_export(
    job: Export, log: Path, timeout_s: float, kill_when: Callable[[Sample], bool] = lambda _: False
) -> tuple[list[Sample], int, bool]:
    """Run `topk trace` and watch it: samples, the kernel's peak in bytes, and whether it was killed.

    Raises:
        RuntimeError: it failed.
        TimeoutError: it took longer than `timeout_s`, and was killed.
    """
    options: dict[str, Any] = {"input": job.input, "output": job.output, "target": job.target}
    options |= {"batch-size": job.batch_size, "dtype": job.dtype, "model-id": job.model_id}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    samples: list[Sample] = []
    peak, began = 0, time.monotonic()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "trace", *given], stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            while process.poll() is None:
                if (found := sample(process.pid, began, job)) is not None:
                    samples.append(found[0])
                    peak = found[1]
                    if kill_when(found[0]):
                        process.send_signal(signal.SIGKILL)
                        process.wait(30)
                        return samples, peak, True
                if time.monotonic() - began > timeout_s:
                    raise TimeoutError(f"the export was not finished after {timeout_s:g} s (--max-seconds)")
                time.sleep(SAMPLE_PERIOD_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(30)
    if process.returncode:
        raise RuntimeError(f"topk trace ended with {process.returncode}: {log.read_text()[-500:].strip()}")
    return samples, peak, False


def memory_of(samples: Sequence[Sample], peak: int, num_batches: int) -> Memory:
    """Raises ValueError if the export was too short to measure."""

    fetching = list(takewhile(lambda s: s.num_parts < num_batches, samples))

    def largest(low: float, high: float) -> int:
        return max((s.rss_bytes for s in fetching if low * num_batches <= s.num_parts < high * num_batches), default=0)

    joining = [s.rss_bytes for s in samples[len(fetching) :]]
    middle = len(joining) // 2 if len(joining) >= MIN_JOINING_SAMPLES else len(joining)
    memory = Memory(
        first_half=largest(WARM_UP, 0.5),
        second_half=largest(0.5, 1.0),
        joining_first_half=max(joining[:middle], default=0),
        joining_second_half=max(joining[middle:], default=0),
        peak=peak,
    )
    if not memory.first_half or not memory.second_half:
        raise ValueError("the export was too short to measure its memory over time: use more texts")
    return memory


def check(job: Export, folder: Path, num_texts: int, timeout_s: float) -> dict[str, Any]:
    """Export once without interruption and once killed halfway; returns the report as plain fields.

    Raises:
        RuntimeError, TimeoutError: as for `run_export`; or the second export ended before it could be killed.
    """
    num_batches = -(-num_texts // job.batch_size)
    began = time.monotonic()
    samples, peak, _ = run_export(job, folder / "through.log", timeout_s)
    through_s = time.monotonic() - began
    memory = memory_of(samples, peak, num_batches)
    note(f"ran through in {through_s:.0f} s; {job.output.stat().st_size / 1e6:.0f} MB")
    resumed = replace(job, output=job.output.with_stem("resumed"))
    _, _, is_killed = run_export(
        resumed, folder / "killed.log", timeout_s, lambda now: now.num_parts >= num_batches // 2
    )
    num_kept = len(list(resumed.parts.glob("part-*.arrow")))
    if not is_killed or not 0 < num_kept < num_batches or resumed.output.exists():
        raise RuntimeError("the second export ended before it could be killed halfway: use more texts")
    note(f"killed with {num_kept} of {num_batches} batches on disk")
    began = time.monotonic()
    _, peak_after, _ = run_export(resumed, folder / "resumed.log", timeout_s)
    resumed_s = time.monotonic() - began
    note(f"resumed, and ended in {resumed_s:.0f} s")
    return {
        "num_texts": num_texts,
        "num_batches": num_batches,
        "seconds": through_s,
        "texts_per_s": num_texts / through_s,
        "num_bytes": job.output.stat().st_size,
        "num_batches_kept": num_kept,
        "seconds_after_resume": resumed_s,
        "is_same": filecmp.cmp(job.output, resumed.output, shallow=False),
        "memory": asdict(memory)
        | {"growth": memory.growth, "growth_in_joining": memory.growth_in_joining, "is_flat": memory.is_flat},
        "peak_after_resume": peak_after,
        "samples": [asdict(s) for s in samples],
    }


def note(text: str) -> None:
    print(text, file=sys.stderr)


def table(fields: dict[str, Any]) -> str:
    """The report as text: the memory at every tenth of the export, then the results."""
    lines = ["| batches done | resident, MB | of it private, MB |", "|---:|---:|---:|"]
    for tenth in range(11):
        near = min(fields["samples"], key=lambda s: abs(s["num_parts"] - tenth / 10 * fields["num_batches"]))
        lines.append(f"| {near['num_parts']} | {near['rss_bytes'] / 1e6:.0f} | {near['private_bytes'] / 1e6:.0f} |")
    memory = fields["memory"]
    sizes = {name: f"{memory[name] / 1e6:.0f} MB" for name in ("first_half", "second_half", "peak")}
    halves = [f"{memory[name] / 1e6:.0f}" for name in ("joining_first_half", "joining_second_half") if memory[name]]
    joining = " and then ".join(halves) + " MB" if halves else "unknown"
    return "\n".join(
        [
            *lines,
            "",
            f"{fields['num_texts']} texts, {fields['texts_per_s']:.0f} per second, {fields['num_bytes'] / 1e6:.0f} MB",
            f"memory: at most {sizes['first_half']} in the first half, {sizes['second_half']} in the second, {joining} "
            f"while the parts were joined, {sizes['peak']} overall: {'flat' if memory['is_flat'] else 'NOT FLAT'}",
            f"killed after {fields['num_batches_kept']} of {fields['num_batches']} batches and resumed: "
            f"{'the same file, byte for byte' if fields['is_same'] else 'A DIFFERENT FILE'}",
        ]
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.export_check", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--target", default="127.0.0.1:9000", help="the service's gRPC address (%(default)s)")
    add("--model-id", help="name of the model (default: the service's only model)")
    add("--texts", type=int, default=50_000, help=f"texts to export, at most {MAX_TEXTS} (%(default)s)")
    add("--words", type=int, default=12, help="approximate words per text (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the texts (%(default)s)")
    add("--batch-size", type=int, default=64, help="texts per request (%(default)s)")
    add("--format", choices=("parquet", "safetensors"), default="parquet", help="format of the output (%(default)s)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="type of the values (%(default)s)")
    add("--folder", type=Path, help="folder for the files, which are kept (default: a temporary one)")
    add("--max-seconds", type=float, default=7200.0, help="maximum time of one export (%(default)s)")
    add("--output", type=Path, default=RESULTS / "export_check.json", help="JSON file to write (%(default)s)")
    add("--allow-remote", action="store_true", help="use a service on another machine, which must be yours")
    given = parser.parse_args(arguments)
    try:
        check_local(given.target, given.allow_remote)
        for name, low, high in (("texts", 2, MAX_TEXTS), ("words", 1, 2048), ("batch_size", 1, 4096)):
            if not low <= (value := getattr(given, name)) <= high:
                raise ValueError(f"{name} is {value}, but must be {low} to {high}")
        if not Path("/proc/self/status").exists():
            raise ValueError("this needs Linux, where /proc shows the memory of a process")
    except ValueError as error:
        parser.error(str(error))
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status is 1 if the files differ or the memory is not flat."""
    given = parse(arguments)
    folder = Path(tempfile.mkdtemp(prefix="topk-export-")) if given.folder is None else given.folder
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "texts.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in plain_texts(given.texts, given.words, given.seed))
    job = Export(
        input=source,
        output=folder / f"through.{given.format}",
        target=given.target,
        model_id=given.model_id,
        batch_size=given.batch_size,
        dtype=given.dtype,
    )
    try:
        fields = check(job, folder, given.texts, given.max_seconds)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"export_check: error: {error}", file=sys.stderr)
        return 1
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(fields, indent=2) + "\n")
    print(table(fields))
    return 0 if fields["is_same"] and fields["memory"]["is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
