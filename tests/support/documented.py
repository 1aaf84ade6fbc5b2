"""The examples in README.md and docs/: finds and runs them, and compares or rewrites the outputs that the pages show.

    make serve                                                  # in another terminal
    python -m tests.support.documented                          # run every example and compare
    python -m tests.support.documented --write docs/traces.md   # run those of one page and rewrite its outputs

An example is a command after `$ ` in a block marked `console`, with its output below it, or a block marked `python`
with its output in the block marked `text` that follows. A command goes on while a quote is open or a line ends in a
backslash, a pipe or `&&`. All pages say port 8000 and 9000; `--url` and `--target` name others. What examples write to
/tmp goes to a folder of the run's own.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
URL, TARGET = "http://127.0.0.1:8000", "127.0.0.1:9000"
TIMEOUT_S = 300

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What differs from run to run.
_VARYING = re.compile(r'(cmpl-|"created": ?"?|X-Request-Id: |x-request-id: |^date: |Ready after )[0-9a-f][-\w.,: ]*')


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its mark, its text, and where the text stands in the page."""

    mark: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """A command or program, and the output that the page shows: `page[start:end]`."""

    page: Path
    code: str
    is_python: bool
    output: str
    start: int
    end: int

    @property
    def needs_grpc(self) -> bool:
        return TARGET in self.code

    def run(self, *, url: str = URL, target: str = TARGET, scratch: Path) -> str:
        """The output of today, with the addresses and the /tmp of the page.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        code = self.code.replace(URL, url).replace(TARGET, target).replace("/tmp/", f"{scratch}/")
        command = [sys.executable, "-"] if self.is_python else ["bash", "-euo", "pipefail", "-c", code]
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(
            command,
            input=code if self.is_python else None,
            cwd=ROOT,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, self.code, done.stdout, done.stderr)
        output = done.stdout.replace(url, URL).replace(target, TARGET).replace(f"{scratch}/", "/tmp/")
        output = output.replace(f"{ROOT}/", "")
        return output if output.endswith("\n") or not output else output + "\n"


def blocks(page: str) -> list[Block]:
    return [Block(mark=m[1], text=m[2], start=m.start(2), end=m.end(2)) for m in _BLOCK.finditer(page)]


def examples(path: Path) -> Iterator[Example]:
    """The examples of a page, in its order."""
    found = blocks(path.read_text())
    for block, following in zip_longest(found, found[1:]):
        if block.mark == "python" and following is not None and following.mark == "text":
            yield Example(
                page=path,
                code=block.text,
                is_python=True,
                output=following.text,
                start=following.start,
                end=following.end,
            )
        elif block.mark == "console":
            for code, output, at in commands(block.text):
                start = block.start + at
                yield Example(
                    page=path, code=code, is_python=False, output=output, start=start, end=start + len(output)
                )


def commands(text: str) -> Iterator[tuple[str, str, int]]:
    """(command, output, place of the output) in a block marked `console`."""
    lines, at, place = text.splitlines(keepends=True), 0, 0
    while at < len(lines):
        assert lines[at].startswith("$ "), f"{lines[at]!r} is no command"
        code = lines[at][2:]
        place, at = place + len(lines[at]), at + 1
        while not is_whole(code):
            code += lines[at]
            place, at = place + len(lines[at]), at + 1
        output = ""
        while at < len(lines) and not lines[at].startswith("$ "):
            output += lines[at]
            at += 1
        yield code.rstrip("\n"), output, place
        place += len(output)


def is_whole(code: str) -> bool:
    try:
        shlex.split(code)
    except ValueError:  # a quote is open
        return False
    return not code.endswith(("\\\n", "|\n", "&&\n"))


def same(shown: str, got: str) -> bool:
    """Equal but for names and times that every run gives anew."""
    return _VARYING.sub(r"\1", shown) == _VARYING.sub(r"\1", got)


def shape(output: str) -> list[Any]:
    """What an output is made of, whatever model answered: names and types of JSON values; of other text, nothing."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while at < len(output):
        try:
            value, at = decoder.raw_decode(output, at)
        except ValueError:
            return []
        values.append(value_shape(value))
        at += len(output[at:]) - len(output[at:].lstrip())
    return values


def value_shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: value_shape(field) for name, field in value.items()}
    if isinstance(value, list):
        return [value_shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the examples of README.md and docs/ against a running service.")
    parser.add_argument("pages", nargs="*", type=Path, help="only these pages (default: all)")
    parser.add_argument("--write", action="store_true", help="rewrite the outputs in the pages")
    parser.add_argument("--url", default=URL, help="the service over HTTP (default: %(default)s)")
    parser.add_argument("--target", default=TARGET, help="the service over gRPC (default: %(default)s)")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as scratch:
        return int(run_pages(options, Path(scratch)) > 0)


def run_pages(options: argparse.Namespace, scratch: Path) -> int:
    """Run the examples, report or rewrite what differs, and return how many failed or differ."""
    num_wrong = 0
    for path in options.pages or PAGES:
        page, offset = path.read_text(), 0
        for example in examples(path):
            try:
                got = example.run(url=options.url, target=options.target, scratch=scratch)
            except subprocess.CalledProcessError as error:
                num_wrong += 1
                print(f"{path}: exit status {error.returncode} of\n{example.code}\n{error.stdout}{error.stderr}")
                continue
            if same(example.output, got):
                continue
            if options.write:
                page = page[: example.start + offset] + got + page[example.end + offset :]
                offset += len(got) - len(example.output)
                continue
            num_wrong += 1
            print(f"{path}: another output of\n{example.code}")
            print("".join(difflib.unified_diff(example.output.splitlines(True), got.splitlines(True), "page", "run")))
        if options.write:
            path.write_text(page)
    return num_wrong


if __name__ == "__main__":
    sys.exit(main())
