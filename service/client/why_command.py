"""The command `topk why`: which neurons a token of a text rests on, by a running service, as a table and a picture."""

import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_TARGET = "127.0.0.1:9000"


class WhyCommand(BaseModel):
    """Ask a running service why a token follows a text, or why a neuron is active in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    text: str = Field(min_length=1, description="the text; by default, the most probable token after it is explained")
    position: int | None = Field(
        None, description="explain the text's token at this position (BOS is 0); negative ones count from the end"
    )
    token: str | None = Field(None, min_length=1, description="explain this token; a word begins with its space")
    against: str | None = Field(None, min_length=1, description="explain why rather the one than this token")
    layer: int | None = Field(None, ge=0, description="with --neuron: explain why this layer's neuron is active")
    neuron: int | None = Field(None, ge=0, description="index of that neuron")
    interventions: str | None = Field(
        None, description="edits under which the model runs, as JSON: the list that a request has"
    )
    layers: list[int] | None = Field(None, description="ablate only neurons of these layers")
    top_n: int = Field(15, ge=1, le=500, description="neurons to show")
    min_effect: float = Field(0.0, ge=0, description="show only neurons whose effect is at least this, either way")
    graph: bool = Field(False, description="show which of the strongest neurons hold up which others")
    max_nodes: int = Field(12, ge=1, le=32, description="neurons of that graph")
    plot: Path | None = Field(None, description="write a picture (PNG) of positions, neurons and graph to this file")
    json_output: bool = Field(False, description="print the whole reply as JSON")

    target: str = Field(DEFAULT_TARGET, description="the service's gRPC address")
    model_id: str | None = Field(None, description="model of the service to use; may be left out if it has only one")
    api_key_file: Path | None = Field(None, description="file that holds the service's API key")

    @model_validator(mode="after")
    def check_neuron(self) -> Self:
        if (self.layer is None) != (self.neuron is None):
            raise ValueError("--layer and --neuron are given together or not at all")
        return self


def why(command: WhyCommand) -> None:
    """Print an attribution, and draw it if that is asked for.

    Raises:
        ValueError, OSError: the key file or the edits cannot be read, or the service has several models and none is
            named.
        ConnectionError: the call failed.
    """
    from google.protobuf.json_format import MessageToDict
    from tqdm import tqdm

    from service.admission import read_keys
    from service.client.client import CallError, Client

    key = None if command.api_key_file is None else read_keys(command.api_key_file)[0]
    try:
        with Client(command.target, api_key=key) as client:
            models = [command.model_id] if command.model_id is not None else [model.id for model in client.models()]
            if len(models) != 1:
                raise ValueError(f"--model-id is needed, since the service has {', '.join(models)}")
            with tqdm(unit="run", disable=not sys.stderr.isatty(), leave=False) as bar:
                attribution = client.attribute(request_of(command, models[0]), partial(show, bar))
    except CallError as error:
        raise ConnectionError(f"{command.target}: {error.message} ({error.code.name})") from None
    if command.json_output:
        fields = MessageToDict(attribution, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(fields, ensure_ascii=False))
    else:
        print("\n".join(table(attribution)))
    if command.plot is not None:
        from service.client.why_plot import plot_attribution

        plot_attribution(attribution, command.plot)


def show(bar: Any, progress: Any) -> None:
    """Show how far the service has come."""
    bar.set_description(progress.stage, refresh=False)
    bar.total, bar.n = progress.total, progress.done
    bar.refresh()


def request_of(command: WhyCommand, model: str) -> Any:
    from service.pb import topk_pb2 as pb

    request = pb.AttributeRequest(
        model=model,
        prompt=pb.Prompt(text=command.text),
        target=pb.AttributionTargetSpec(position=command.position, layer=command.layer, neuron=command.neuron),
        interventions=[intervention_of(one) for one in edits_of(command.interventions)],
        layers=command.layers,
        top_n=command.top_n,
        min_effect=command.min_effect,
        graph=command.graph or command.plot is not None,
        max_nodes=command.max_nodes,
    )
    if command.token is not None:
        request.target.token.text = command.token
    if command.against is not None:
        request.against.text = command.against
    return request


def edits_of(text: str | None) -> list[dict[str, Any]]:
    """The objects of a list in JSON; none without a text."""
    edits = [] if text is None else json.loads(text)
    if not isinstance(edits, list) or not all(isinstance(one, dict) for one in edits):
        raise ValueError("--interventions must be a list of objects in JSON")
    return edits


def intervention_of(edit: dict[str, Any]) -> Any:
    """The message of an edit that is given as the HTTP API has it."""
    from google.protobuf.json_format import ParseDict, ParseError

    from service.pb import topk_pb2 as pb

    def named(fields: dict[str, Any], prefix: str, *names: str) -> dict[str, Any]:
        """The fields with the values of these as names of the enums."""
        return fields | {name: f"{prefix or name}_{fields[name]}".upper() for name in names if fields.get(name)}

    fields = named(edit, "", "op", "unit", "site")
    if (layer := fields.pop("layer", None)) == "all":
        fields["all_layers"] = True
    elif layer is not None:
        fields["layer"] = layer if isinstance(layer, list) else [layer]
    if isinstance(positions := fields.get("positions"), str):
        fields["positions"] = named({"kind": positions}, "position_kind", "kind")
    elif positions is not None:
        fields["positions"] = {"range": positions}
    try:
        if conditions := fields.get("when"):
            fields["when"] = [named(dict(one), "condition_test", "is") for one in conditions]
        return ParseDict(fields, pb.Intervention())
    except (ParseError, TypeError, ValueError) as error:
        raise ValueError(f"--interventions: {error}") from None


def table(attribution: Any) -> Iterator[str]:
    """An attribution as lines of text."""
    target, sums = attribution.target, attribution.sums
    unit = "nats" if target.HasField("token") else "of its value"
    yield headline(target)
    for warning in attribution.warnings:
        yield f"note: {warning}"
    yield (
        f"{attribution.num_neurons} neurons ablated, each alone: their effects add up to {sums.neurons:+.2f} {unit}; "
        f"all of them at once: {sums.everything:+.2f} (gap {sums.neurons_gap:+.2f})"
    )
    yield ""
    yield from rows(
        ("effect", "at", "token", "layer", "neuron", "value", "label"),
        [
            (f"{n.effect:+.3f}", n.position, repr(n.token), n.layer, n.neuron, f"{n.value:.2f}", n.label)
            for n in attribution.neurons
        ],
    )
    yield ""
    effects = [(f"{one.effect:+.3f}", one.position, repr(one.token)) for one in attribution.positions]
    yield from rows(("effect", "at", "whole position"), effects)
    yield ""
    yield from rows(("effect", "layer"), [(f"{one.effect:+.3f}", one.layer) for one in attribution.layers])
    if attribution.HasField("graph"):
        yield ""
        yield from graph_lines(attribution.graph)


def headline(target: Any) -> str:
    if not target.HasField("token"):
        neuron = target.neuron
        label = f" ({neuron.label})" if neuron.label else ""
        place = f"{neuron.position} {neuron.token!r}"
        return f"layer {neuron.layer}, neuron {neuron.neuron}{label} at {place}: {target.score:.3f}"
    token = target.token
    chance = f"{token.logprob:.3f} nats ({math.exp(token.logprob):.1%})"
    if not target.HasField("against"):
        return f"{token.token!r} at {target.position}: {chance}"
    tokens = f"{token.token!r} and not {target.against.token!r}"
    return f"{tokens} at {target.position}: {target.score:+.3f} nats; alone {chance}"


def graph_lines(graph: Any) -> Iterator[str]:
    nodes = {node.id: f"{node.layer}/{node.neuron} at {node.position} {node.token!r}" for node in graph.nodes}
    share = f", {graph.share:.0%} of the effect of all neurons" if graph.HasField("share") else ""
    yield f"{len(graph.nodes)} neurons ablated at once: {graph.effect:+.2f}{share}"
    edges = sorted(graph.edges, key=lambda edge: -abs(edge.share))
    yield from rows(
        ("share", "of the value of", "rests on"),
        [(f"{edge.share:+.0%}", nodes[edge.target], nodes[edge.source]) for edge in edges],
    )


def rows(names: tuple[str, ...], lines: list[tuple[Any, ...]]) -> Iterator[str]:
    """Columns side by side; numbers to the right."""
    cells = [names, *[tuple(map(str, line)) for line in lines]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    is_text = [not all(is_number(line[i]) for line in cells[1:]) for i in range(len(names))]
    for line in cells:
        padded = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        )
        yield "  ".join(padded).rstrip()


def is_number(cell: str) -> bool:
    return cell.strip("+-%").replace(".", "", 1).isdigit()
