"""The command `topk trace`: one text with a model in this process, or a file of texts with a running service."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from topk_model.traces import PackedType

DEFAULT_TARGET = "127.0.0.1:9000"
LOCAL_OPTIONS = frozenset({"text", "model", "step", "device", "json_output"})
SHARED_OPTIONS = frozenset({"top_n"})


class TraceCommand(BaseModel):
    """Trace a text here, or a file of texts with a service. An export does not load torch; help does not load gRPC."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    text: str | None = Field(None, min_length=1, description="text to trace, with a model in this process")
    model: Path | None = Field(None, description="folder of that model (default: the default model)")
    step: int | None = Field(None, ge=0, description="use the model's checkpoint of this training step")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    top_n: int | None = Field(None, ge=1, description="only the n largest neurons of each token and layer")
    json_output: bool = Field(False, description="print the trace of `text` as one JSON object, like the service")

    input: Path | None = Field(
        None, description="file of texts for a service to read: JSON objects, one per line; blank lines are skipped"
    )
    output: Path | None = Field(None, description="file to write, .parquet or .safetensors; a killed run is continued")
    target: str = Field(DEFAULT_TARGET, description="the service's gRPC address")
    model_id: str | None = Field(None, description="model of the service (default: its only model)")
    api_key_file: Path | None = Field(None, description="file with the service's API key")
    text_field: str = Field("text", description="field of the input's objects that has the text")
    batch_size: int = Field(
        64, ge=1, le=4096, description="texts per request; the traces of three requests are in memory at once"
    )
    dtype: PackedType = Field("float32", description="type of the written activations")
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do with a line without a text or one that the service refuses; skip: it gets no trace",
    )

    @model_validator(mode="after")
    def check_task(self) -> Self:
        if (self.text is None) == (self.input is None):
            raise ValueError("either --text or --input is required, but not both")
        if self.input is not None and self.output is None:
            raise ValueError("--output is required with --input")
        allowed = SHARED_OPTIONS | (LOCAL_OPTIONS if self.text is not None else self.remote_options())
        wrong = self.model_fields_set - allowed
        if wrong:
            option = "--" + min(wrong).replace("_", "-")
            raise ValueError(f"{option} cannot be used with {'--input' if self.text is None else '--text'}")
        return self

    @classmethod
    def remote_options(cls) -> frozenset[str]:
        return frozenset(cls.model_fields) - LOCAL_OPTIONS


def trace(command: TraceCommand) -> None:
    """Print the trace of a text, or export those of a file.

    Raises:
        ValueError, OSError: as for `topk_model.generate.trace` and `service.client.export.export`.
        ConnectionError: a call failed.
    """
    given = command.model_dump(exclude_unset=True)
    if command.input is None:
        from topk_model.generate import trace as trace_here
        from topk_model.options import TraceConfig

        trace_here(TraceConfig(**given))
        return
    from service.admission import read_keys
    from service.client.client import CallError
    from service.client.export import Export, export

    key_file = given.pop("api_key_file", None)
    key = None if key_file is None else read_keys(key_file)[0]
    try:
        exported = export(
            Export(target=command.target, api_key=key, **{k: v for k, v in given.items() if k != "target"})
        )
    except CallError as error:
        raise ConnectionError(f"{command.target}: {error.message} ({error.code.name})") from None
    assert command.output is not None
    print(exported.summary(command.output))
