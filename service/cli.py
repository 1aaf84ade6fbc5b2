"""The console command `topk`. Options, their types and their help come from the configuration classes.

Each command is imported only when it is called, so that `topk --help` answers at once.
"""

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from service.command_help import command_help

USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand: a function of one configuration object."""

    summary: str
    config: str  # "module:class"
    function: str  # "module:function"
    example: str
    groups: dict[str, str]  # of options: heading -> the option that it begins with


#: The string that pydantic-settings reads as None. It must be one that nobody types: "None" is an ordinary text.
NO_VALUE = "<not given>"

COMMANDS = {
    "serve": Command(
        summary="start the service (each option can also be a variable: TOPK_HTTP_PORT=8001)",
        config="service.settings:Settings",
        function="service.rayserve.process:run",
        example="topk serve --model my-model --http-port 8001",
        groups={
            "models": "model",
            "addresses and access": "host",
            "device, replicas and threads": "device",
            "the engine of each model": "max_num_seqs",
            "requests": "max_ongoing_requests",
            "health, start and stop": "health_check_period_s",
            "logs and traces": "log_level",
        },
    ),
    "generate": Command(
        summary="continue a text, without a server",
        config="topk_model.options:GenerateConfig",
        function="topk_model.generate:generate",
        example="topk generate --prompt 'Once upon a time,' --max-tokens 40",
        groups={"model": "model", "text": "prompt"},
    ),
    "trace": Command(
        summary="show the active neurons of a text, without a server, or export those of many texts from a service",
        config="service.client.trace_command:TraceCommand",
        function="service.client.trace_command:trace",
        example="topk trace --text 'The king went to war.' --top-n 3",
        groups={"one text, with a model in this process": "text", "a file of texts, with a running service": "input"},
    ),
    "why": Command(
        summary="show which neurons the next token of a text rests on, by a running service",
        config="service.client.why_command:WhyCommand",
        function="service.client.why_command:why",
        example="topk why --text 'Once upon a time there was a little' --plot why.png",
        groups={"what to explain": "text", "what to show": "top_n", "the service": "target"},
    ),
    "data": Command(
        summary="make a training set from books or from your own texts",
        config="topk_model.training.options:DataConfig",
        function="topk_model.training.data:prepare",
        example="topk data --texts my-texts --licence CC-BY-4.0 --output data/mine",
        groups={"your own texts": "texts", "or books": "source", "output": "output", "which books": "min_reading_ease"},
    ),
    "train": Command(
        summary="train a model, or continue a run (with 2 GPUs: torchrun --nproc-per-node 2 -m -- service.cli train …)",
        config="topk_model.training.options:TrainConfig",
        function="topk_model.training.train:train",
        example="topk train --data data/books --run runs/mine --steps 2000",
        groups={"run": "data", "shape": "hidden_size", "schedule": "steps", "device, logs and checkpoints": "seed"},
    ),
    "catalogue": Command(
        summary="build the neuron catalogue of a model and of its checkpoints",
        config="topk_model.catalogue.build.options:CatalogueConfig",
        function="topk_model.catalogue.build.build:build_catalogue",
        example="topk catalogue --model my-model --data data/books",
        groups={"model": "model", "texts": "data", "output and device": "output"},
    ),
    "neurons": Command(
        summary="read a neuron catalogue: one neuron, a list, a search by text, or a plot of a neuron's history",
        config="topk_model.catalogue.options:NeuronsConfig",
        function="topk_model.catalogue.show:neurons",
        example="topk neurons --text 'the ship sailed over the sea'",
        groups={"model": "model", "one neuron": "layer", "by texts": "text", "a list": "label", "output": "limit"},
    ),
    "ship": Command(
        summary="turn a finished run into a model to share",
        config="topk_model.release.options:ShipConfig",
        function="topk_model.release.ship:ship",
        example="topk ship --run runs/mine --output my-model",
        groups={"options": "run"},
    ),
    "presets": Command(
        summary="find the neurons that steer towards everyday concepts",
        config="topk_model.steering.options:PresetsConfig",
        function="topk_model.steering.find_presets:find_presets",
        example="topk presets --model my-model",
        groups={"options": "model"},
    ),
    "examples": Command(
        summary="write with the presets and keep the texts that show best what they do, for the page and the API",
        config="topk_model.steering.options:ExamplesConfig",
        function="service.serving.find_examples:find_examples",
        example="topk examples --model my-model",
        groups={"model": "model", "texts": "prompts", "output and machine": "count"},
    ),
    "lever": Command(
        summary="find the neurons that make any words, or texts, likelier, and what that costs",
        config="topk_model.steering.lever_options:LeverConfig",
        function="topk_model.steering.lever_command:lever",
        example="topk lever --words winter,snow,ice --prompt 'It was' --plot winter.png",
        groups={"model": "model", "what to steer towards": "words", "output": "prompt"},
    ),
    "evaluate": Command(
        summary="measure a model and its dense twin: loss, neurons, steering, emergence",
        config="topk_model.release.options:EvaluateConfig",
        function="topk_model.release.evaluate:evaluate",
        example="topk evaluate --model my-model",
        groups={"options": "model"},
    ),
}


class WithoutEnvironment(BaseSettings):
    """Options from the command line only: the configuration of a program that is started by hand."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load(target: str) -> Any:
    """The object that "module:name" names."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


def parse(config_class: type[BaseModel], prog: str, description: str, args: Sequence[str]) -> Any:
    """A `config_class` from command-line options. Only a `BaseSettings` reads the environment as well.

    Raises:
        SystemExit: help was requested, or an option is unknown or missing (then stderr names it).
        ValidationError: a value is invalid for its field.
        SettingsError: an option's value cannot be parsed.
    """
    has_environment = issubclass(config_class, BaseSettings)
    bases = (config_class,) if has_environment else (WithoutEnvironment, config_class)
    options = SettingsConfigDict(
        cli_parse_args=list(args),
        cli_prog_name=prog,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str=NO_VALUE,
        cli_enforce_required=True,
        extra="forbid",
    )
    settings_class: Any = type(config_class.__name__, bases, {"model_config": options, "__doc__": description})
    parsed = settings_class()
    return parsed if has_environment else config_class(**parsed.model_dump(exclude_unset=True))


def one_problem(problem: ErrorDetails) -> str:
    """One of pydantic's errors, under the name of the option that sets the field."""
    message = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    if not problem["loc"]:
        return message
    given = f", not {problem['input']!r}" if isinstance(problem["input"], str | int | float) else ""
    return "--" + ".".join(map(str, problem["loc"])).replace("_", "-") + f": {message}{given}"


def one_line(error: Exception) -> str:
    """The error in one line, for a person at a terminal; options have their command-line names."""
    if isinstance(error, ValidationError):
        return "; ".join(map(one_problem, error.errors()))
    return " ".join(str(error).split())


#: Libraries whose errors a caller can fix: a file, a disk, memory, a machine. Any other error is a bug of ours.
LIBRARIES = ("safetensors", "safetensors_rust", "sqlite3", "pyarrow", "ray", "torch")


def cause_of(error: Exception) -> str | None:
    """The cause of an error in a library, if the user can do something about it."""
    text = one_line(error)
    if "inline_container" in text:  # torch.save; PyTorch reports only the place in its own source
        return f"a file could not be written, perhaps because the disk is full: {text}"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"there is not enough memory{f': {text}' if text else ''}"
    return text if type(error).__module__.partition(".")[0] in LIBRARIES else None


def usage() -> str:
    commands = "\n".join(f"  {name:10s}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: topk [-h] [--version] command [options]\n\n"
        "Serve, train and inspect TopK language models.\n\n"
        f"commands:\n{commands}\n\n"
        "topk COMMAND --help lists the options of a command."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for anything the caller can fix, 130 if interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if args == ["--version"]:
        print(f"topk {version('topk-serve')}")
        return 0
    if not args or args[0] not in COMMANDS:
        problem = f"{args[0]!r} is not a command" if args else "a command is required"
        print(f"{usage()}\n\ntopk: error: {problem}", file=sys.stderr)
        return USAGE_ERROR
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may use another encoding
    # The progress bars that transformers shows when it saves a file would break up ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command, prog = COMMANDS[args[0]], f"topk {args[0]}"
    try:
        if {"-h", "--help"} & set(args[1:]):
            options = load(command.config)
            print(command_help(prog, command.summary, options, example=command.example, groups=command.groups))
            return 0
        config = parse(load(command.config), prog, command.summary, args[1:])
        load(command.function)(config)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has stopped; do not write the rest at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValidationError, SettingsError, ValueError, OSError, FloatingPointError) as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if (cause := cause_of(error)) is None:
            raise
        print(f"{prog}: error: {cause}", file=sys.stderr)
        return USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
