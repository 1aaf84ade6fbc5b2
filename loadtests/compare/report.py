"""A comparison's report for people: Markdown tables, a picture, and both put into a page of the documentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from loadtests.compare.engines import CELLS, LLAMA_CPP, OURS, ROWS, TORCH_STEP, TRANSFORMERS, VLLM, VLLM_BF16
from loadtests.compare.services import ENGINE, MEASURED, NEW, OLD
from loadtests.compare.shapes import BY_NAME
from loadtests.compare.wanted import FLOAT32_BYTES, STORAGES, Report, best, of_rows

BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
PICTURE = "compare.png"
#: Of the processors' time, before anything is measured: more means that others compute, too.
BUSY = 0.2

#: What the tables call a side's case.
CASE_NAMES = {
    "plain": "plain",
    "edited": "an edit in every TopK layer, the same in all rows",
    "varied": "edits in every TopK layer, different in each row",
    "traced": "such edits, and traces of all layers",
    "sampled": "temperature 0.8, top_p 0.95",
}
KINDS = {"whole": "HTTP, whole replies", "stream": "HTTP, streams", "traces": "gRPC, traces"}
#: (label, side, cases of which the best counts, colour), the bars of the picture.
BARS = (
    ("ours, float32, edited and traced", OURS, ("float32 traced",), "tab:blue"),
    ("ours, best storage, edited and traced", OURS, tuple(f"{s} traced" for s in STORAGES), "tab:cyan"),
    ("vLLM, float32", VLLM, ("float32",), "tab:orange"),
    ("vLLM, bfloat16", VLLM_BF16, ("bfloat16",), "tab:red"),
    ("transformers, best", TRANSFORMERS, ("float32", "bfloat16"), "tab:gray"),
    ("llama.cpp, best", LLAMA_CPP, ("float32", "q8_0"), "tab:brown"),
)


def label(side: str, case: str) -> str:
    """A row of the table."""
    storage, _, asked = case.partition(" ")
    if side == OURS:
        return f"**ours**, {storage}, {CASE_NAMES[asked]}"
    if side == TORCH_STEP:
        return f"ours with torch's step, {storage}, {CASE_NAMES[asked]}"
    return f"{side.partition(' ')[0]}, {storage}"


def markdown(fields: dict[str, Any]) -> str:
    """All tables."""
    report = Report(fields)
    parts = [heading(fields), *(engine_table(report, shape) for shape in report.shapes)]
    if report.shapes:
        parts.append(machine_table(report))
    if fields["services"]:
        parts.append(service_table(report, fields))
    if fields["skipped"]:
        parts.append("\n".join(["Left out:", ""] + [f"- {name}: {why}" for name, why in fields["skipped"].items()]))
    return "\n\n".join(parts)


def heading(fields: dict[str, Any]) -> str:
    machine, settings = fields["machine"], fields["settings"]
    lines = [
        f"{machine['processor']}, {machine['instructions']}, {settings['num_threads']} threads of "
        f"{machine['num_cpus']} CPUs; commit {fields['commit'][:12]}; prompts of {settings['prompt_tokens']} tokens, "
        f"{settings['new_tokens']} new tokens for each row; medians of interleaved rounds. "
        f"{', '.join(f'{name} {version}' for name, version in fields['versions'].items())}."
    ]
    if machine["load_before"] > BUSY * machine["num_cpus"]:
        lines.append(
            f"**Other work was running**: a load of {machine['load_before']:.1f} before the first measurement."
        )
    return "\n".join(lines)


def engine_table(report: Report, shape: str) -> str:
    size = BY_NAME[shape]
    lines = [
        f"Engine, tokens/s, {shape}: hidden size {size.hidden_size}, {size.num_layers} blocks, MLPs of "
        f"{size.intermediate_size}, vocabulary of {size.vocab_size}, k {size.topk_k}:",
        "",
        f"| | {' | '.join(of_rows(rows) for rows in ROWS)} |",
        "|---|" + "---:|" * len(ROWS),
    ]
    for cell in CELLS:
        rates = [report.rate(shape, cell.side, cell.case, rows) for rows in ROWS]
        if any(rates) and cell.is_for_few:
            lines.append(f"| {label(cell.side, cell.case)} | {' | '.join(shown(rate) for rate in rates)} |")
    return "\n".join(lines)


def machine_table(report: Report) -> str:
    machine = report.machine
    lines = [
        f"The machine: {machine['flops_per_s'] / 1e9:.0f} GFLOP/s from registers, "
        f"{machine['read_bytes_per_s']['large'] / 1e9:.1f} GB/s read from memory. What of that is reached in float32 "
        "(the memory's rate is that of reading as many bytes as the weights have, which may fit into a cache):",
        "",
        "| | weights, MB | read at, GB/s | share of that at 1 row | share of the peak at 32 rows, within the MLPs' "
        "products | over whole steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for shape in report.shapes:
        cells = [
            f"{BY_NAME[shape].num_matrix_weights * FLOAT32_BYTES / 1e6:.0f}",
            f"{machine['read_bytes_per_s'][shape] / 1e9:.1f}",
            *(
                share(found)
                for found in (
                    report.memory_share(shape),
                    report.products_share(shape, ROWS[-1]),
                    report.step_share(shape, ROWS[-1]),
                )
            ),
        ]
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def service_table(report: Report, fields: dict[str, Any]) -> str:
    facts = fields["service_facts"]
    old, threads = facts["commits"].get(OLD, "")[:12], facts["num_threads"]
    lines = [
        f"Service, tokens/s, the default model, {threads} thread{'s' * (threads > 1)}, the client on the same "
        f"machine{', beside commit ' + old if old else ''}; traced tokens for traces, else generated ones:",
        "",
        "| | in flight | engine alone | service | share | before | times that | first token, ms | before |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, in_flight in MEASURED:
        engine, new, before = (report.served(kind, in_flight, who) for who in (ENGINE, NEW, OLD))
        first = [report.served(kind, in_flight, who, "first_token_ms") for who in (NEW, OLD)]
        cells = [
            shown(engine), shown(new), f"{new / engine:.2f}" if new and engine else "", shown(before),
            f"{new / before:.1f}" if new and before else "", *(shown(value, 1) for value in first),
        ]  # fmt: skip
        if any(cells):
            lines.append(f"| {KINDS[kind]} | {in_flight} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def plot(fields: dict[str, Any], path: Path) -> None:
    """Write a PNG: tokens per second by shape, rows and side."""
    report = Report(fields)
    figure = Figure(figsize=(4.2 * max(1, len(report.shapes)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (axes, shape) in enumerate(
        zip(np.ravel(figure.subplots(1, max(1, len(report.shapes)), squeeze=False)), report.shapes, strict=False)
    ):
        bars = [(name, rates, colour) for name, rates, colour in heights(report, shape) if any(rates)]
        width = 0.8 / max(1, len(bars))
        for number, (name, rates, colour) in enumerate(bars):
            at = np.arange(len(ROWS)) + (number - (len(bars) - 1) / 2) * width
            drawn = axes.bar(at, [rate or 0.0 for rate in rates], width, label=name, color=colour)
            axes.bar_label(drawn, [shown(rate) for rate in rates], rotation=90, fontsize=7, padding=2)
        axes.set(title=shape, yscale="log", xticks=range(len(ROWS)), xticklabels=ROWS, xlabel="rows")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.18)
        axes.grid(visible=True, axis="y", alpha=0.3)
        if place == 0:
            axes.set_ylabel("tokens per second")
    bars_by_name: dict[str, Any] = {}
    for axes in figure.axes:
        drawn, names = axes.get_legend_handles_labels()
        bars_by_name |= dict(zip(names, drawn, strict=True))
    if bars_by_name:
        figure.legend(bars_by_name.values(), bars_by_name.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def heights(report: Report, shape: str) -> list[tuple[str, list[float | None], str]]:
    """The bars of a shape: name, one height for each number of rows, colour."""
    return [
        (name, [best(*(report.rate(shape, side, case, rows) for case in cases)) for rows in ROWS], colour)
        for name, side, cases, colour in BARS
    ]


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the page's two marks.

    Raises:
        ValueError: it has not both, in order.
    """
    before, found, rest = page.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page} must hold {BEGIN!r} and, below, {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def write_documentation(page: Path, fields: dict[str, Any]) -> Sequence[Path]:
    """The tables into the page, the picture beside it; the files written."""
    picture = page.parent / PICTURE
    plot(fields, picture)
    put_into(page, f"{markdown(fields)}\n\n![Tokens per second, by shape and rows]({PICTURE})")
    return (page, picture)
