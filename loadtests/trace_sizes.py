"""Bytes per kept neuron on the wire, in each encoding of a service's traces, counted on its own replies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from service.client.client import Client, texts
from service.pb import topk_pb2 as pb

#: gRPC puts a flag and a length before each message.
GRPC_PREFIX_BYTES = 5
#: Maximum number of texts of an Activations call.
MAX_TEXTS = 32


@dataclass(frozen=True, kw_only=True)
class TraceSize:
    """One complete reply: the activations, their tokens, and the rest."""

    form: str
    num_bytes: int
    num_entries: int  # kept neurons

    @property
    def bytes_per_entry(self) -> float:
        return self.num_bytes / self.num_entries


def measure_sizes(
    target: str, url: str, model_id: str, inputs: Sequence[str], api_key: str | None = None
) -> list[TraceSize]:
    """The size of one reply with the traces of `inputs`, at most 32, in every encoding.

    Raises:
        ValueError: the service does not answer, or the encodings have different numbers of activations.
        CallError: a call failed.
    """
    if not 1 <= len(inputs) <= MAX_TEXTS:
        raise ValueError(f"{len(inputs)} texts cannot be requested at once, only 1 to {MAX_TEXTS}")
    sizes = []
    with Client(target, api_key=api_key, timeout_s=60.0, max_message_bytes=2**30) as client:
        for name, width in (("float32", 4), ("float16", 2)):
            kind = pb.ValueType.Value(f"VALUE_TYPE_{name.upper()}")
            options = pb.TraceOptions(dtype=kind)
            reply = client.activations(pb.ActivationsRequest(model=model_id, input=texts(inputs), trace=options))
            traces = [item.trace for item in reply.data]
            num_entries = sum(len(trace.values) for trace in traces) // width
            whole = reply.ByteSize() + GRPC_PREFIX_BYTES
            sizes.append(TraceSize(form=f"gRPC {name}", num_bytes=whole, num_entries=num_entries))
            arrays = sum(len(getattr(trace, part)) for trace in traces for part in ("offsets", "indices", "values"))
            sizes.append(TraceSize(form=f"gRPC {name}, arrays alone", num_bytes=arrays, num_entries=num_entries))
    num_entries = sizes[0].num_entries
    headers = {"Accept-Encoding": "identity"} | ({} if api_key is None else {"Authorization": f"Bearer {api_key}"})
    packed: list[tuple[str, dict[str, Any]]] = [
        (f"HTTP packed {name}", {"encoding": "packed", "dtype": name}) for name in ("float16", "float32")
    ]
    with httpx.Client(base_url=url, headers=headers, timeout=60.0) as http:
        for form, trace in [("HTTP JSON", {}), *packed]:
            answer = http.post("/v1/activations", json={"model": model_id, "input": list(inputs), "trace": trace})
            if answer.status_code != 200:
                raise ValueError(f"{url} answered {answer.status_code}: {answer.text[:300]}")
            if not trace:
                found = sum(len(item["trace"]["values"]) for item in answer.json()["data"])
                if found != num_entries:
                    raise ValueError(f"over HTTP the traces have {found} kept neurons, over gRPC {num_entries}")
            sizes.append(TraceSize(form=form, num_bytes=len(answer.content), num_entries=num_entries))
    return sorted(sizes, key=lambda size: -size.num_bytes)
