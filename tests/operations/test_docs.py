"""README.md and docs/: links that lead somewhere, commands that exist, requests that are valid, examples that run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format

from service.cli import COMMANDS, load
from service.pb import topk_pb2 as pb
from service.requests import limits
from service.requests.attribution_schema import AttributionRequest
from service.requests.levers import LeversRequest
from service.requests.neuron_schema import NeuronSearchRequest
from service.requests.parsing import parse_body
from service.requests.schema import ActivationsRequest, ChatCompletionRequest, CompletionRequest, TokenizeRequest
from tests.support.documented import PAGES, ROOT, URL, Example, blocks, examples, shape
from tests.support.served import Served, serve_app
from topk_model.interventions import MAX_CONDITIONS
from topk_model.model_folder import DEFAULT_MODEL

DOCUMENTS = [*PAGES, *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md")), *ROOT.glob("deploy/**/*.md")]
DOCUMENTS += ROOT.glob("loadtests/*.md")
EXAMPLES = [example for page in PAGES for example in examples(page)]
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
BODIES = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/activations": ActivationsRequest,
    "/v1/neurons/search": NeuronSearchRequest,
    "/v1/levers": LeversRequest,
    "/v1/tokenize": TokenizeRequest,
    "/v1/attributions": AttributionRequest,
}
#: Two screens, and what the outputs of another model may take.
MAX_README_LINES = 125


LIMITS = {
    "bytes of a body": limits.MAX_BODY_BYTES,
    "prompts or inputs": limits.MAX_PROMPTS,
    "inputs of gRPC's `ActivationsStream`": limits.MAX_STREAM_PROMPTS,
    "`n`": limits.MAX_N,
    "sequences: prompts × n × variants": limits.MAX_ROWS,
    "generated tokens: sequences × `max_tokens`": limits.MAX_GENERATED_TOKENS,
    "entries of the trace: sequences × tokens × layers × kept neurons": limits.MAX_TRACE_ENTRIES,
    "interventions": limits.MAX_INTERVENTIONS,
    "conditions of an intervention": MAX_CONDITIONS,
    "magnitude of an intervention's value": limits.MAX_ABS_VALUE,
    "`strength` of a preset": limits.MAX_STRENGTH,
    "stop strings": limits.MAX_STOP,
    "characters of a stop string": limits.MAX_STOP_CHARS,
    "`logprobs`": limits.MAX_LOGPROBS,
    "entries of `logit_bias`": limits.MAX_LOGIT_BIAS,
    "messages of a chat": limits.MAX_MESSAGES,
    "characters to tokenize, or tokens to detokenize": limits.MAX_TOKENIZED,
    "neurons of a page or search": limits.MAX_NEURONS,
    "texts on each side of a contrast, or of a search for levers": limits.MAX_CONTRAST_TEXTS,
    "positions that an attribution computes, for each neuron those from its own to the target": (
        limits.MAX_ATTRIBUTION_ROWS
    ),
    "neurons of an attribution's graph": limits.MAX_NODES,
    "neurons named by `differences`": limits.MAX_DIFFERENCES,
    "words of a search for levers": limits.MAX_LEVER_WORDS,
    "characters of such a word": limits.MAX_WORD_CHARS,
    "tokens of these words that are not a word's last": limits.MAX_LEVER_NODES,
    "tokens of the texts of a search for levers": limits.MAX_LEVER_TEXT_TOKENS,
    "levers of a reply": limits.MAX_LEVERS,
    "tokens of a lever's continuation": limits.MAX_LEVER_TOKENS,
    "`max_cost`, nats a token": limits.MAX_LEVER_COST,
    "seconds of `timeout_s`": limits.MAX_TIMEOUT_S,
}


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def without_blocks(page: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lines_of_shell() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command in a block marked `bash` or `console`."""
    for path in DOCUMENTS:
        for block in blocks(path.read_text()):
            if block.mark == "bash":
                for line in block.text.replace("\\\n", " ").splitlines():
                    if line.startswith("topk "):
                        yield path.name, shlex.split(line, comments=True)
    for example in EXAMPLES:
        words = [] if example.is_python else shlex.split(example.code)
        if words[:1] == ["topk"]:
            yield example.page.name, words


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in LINK.findall(without_blocks(path.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_api_page_has_every_limit_as_it_is() -> None:
    _, _, table = (ROOT / "docs" / "api.md").read_text().partition("| | at most |\n|---|---:|\n")
    assert table.splitlines() == [f"| {name} | {limit:,.0f} |" for name, limit in LIMITS.items()]


def test_the_tree_of_architecture_names_every_file_of_the_code() -> None:
    tree = (ROOT / "ARCHITECTURE.md").read_text()
    files = [path for folder in ("topk_model", "service") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if path.name != "__init__.py" and not {"pb", "default"} & set(path.parts)]
    assert [path.name for path in files if not re.search(rf"\b{path.name}\b", tree)] == []


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_topk_command_and_option_exists() -> None:
    seen = 0
    for page, (_, command, *words) in lines_of_shell():
        assert command in COMMANDS, (page, command)
        fields = load(COMMANDS[command].config).model_fields
        for word in words:
            if word.startswith("--"):
                option = word[2:].partition("=")[0].replace("-", "_")
                assert option in fields, (page, command, word)
                seen += 1
    assert seen > 20


def test_every_make_target_exists() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = phony.split()
    for path in DOCUMENTS:
        for target in re.findall(r"(?:^ *|`)make ([a-z][\w-]*)", path.read_text(), re.MULTILINE):
            assert target in targets, (path.name, target)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if " -d '" in e.code], ids=lambda e: e.page.name)
def test_every_request_is_valid_by_its_schema(example: Example) -> None:
    """Those apart whose output is an error."""
    words = shlex.split(example.code)
    body = words[words.index("-d") + 1]
    if '"error"' in example.output:
        return
    for path, kind in BODIES.items():
        if URL + path in words:
            parse_body(kind, body.encode())
            return
    (method,) = [word.rpartition("/")[2] for word in words if "topk.v1.TopKService/" in word]
    message = pb.GenerateStreamRequest() if method == "GenerateStream" else pb.GenerateRequest()
    json_format.Parse(json.dumps(json.loads(body)), message)


@pytest.fixture(scope="module")
def served_default() -> Iterator[Served]:
    with serve_app(DEFAULT_MODEL, model_id="topk-default", num_blocks=2048) as service:
        yield service


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
@pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.needs_grpc], ids=lambda e: f"{e.page.name}:{e.start}")
def test_every_example_runs_and_gives_what_the_page_shows(
    example: Example, served_default: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is shown is of one model and one kind of processor: here it is the shape of JSON that must be the same."""
    output = example.run(url=served_default.url, scratch=tmp_path_factory.getbasetemp())
    assert bool(output) == bool(example.output)
    assert shape(output) == shape(example.output)
