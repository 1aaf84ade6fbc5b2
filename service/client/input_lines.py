"""The input of an export: one JSON object with a text per line, all of them read before anything is fetched.

Blank lines and a byte order mark are neither texts nor errors. Every text is stored as a digest, so that an export
that continues after a line has been corrected knows which of its traces are still valid.
"""

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

BOM = b"\xef\xbb\xbf"
#: Maximum number of errors in an input that are reported.
MAX_FAULTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that is not blank."""

    number: int  # counted from 0
    text: str
    fault: str | None = None  # why it cannot be sent; it then has no text

    def digest(self) -> int:
        content = f"fault: {self.fault}" if self.fault is not None else f"text: {self.text}"
        return int.from_bytes(sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "little")


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A complete file, 16 bytes per line. Its rows are the lines that are not blank."""

    path: Path
    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    digests: "array[int]" = field(default_factory=lambda: array("Q"))

    @classmethod
    def read(cls, path: Path, text_field: str, *, may_have_faults: bool) -> "Lines":
        """Read every line.

        Raises:
            ValueError: a line is not a JSON object with a text that can be sent, unless this is allowed; or none is.
            OSError: the file cannot be read.
        """
        lines, faults, num_faults = cls(path=path), [], 0
        for line in read_lines(path, text_field):
            lines.numbers.append(line.number)
            lines.digests.append(line.digest())
            if line.fault is not None:
                num_faults += 1
                if num_faults <= MAX_FAULTS_SHOWN:
                    faults.append(f"line {line.number + 1} of {path}{line.fault}")
        if not lines.numbers:
            raise ValueError(f"input {path} is empty")
        if num_faults and not may_have_faults:
            more = f"; and {num_faults - len(faults)} more" if num_faults > len(faults) else ""
            raise ValueError("; ".join(faults) + f"{more} (with --on-error skip such lines get no trace)")
        return lines

    def __len__(self) -> int:
        return len(self.numbers)

    def key(self, rows: range) -> str:
        """A key for the content of some rows and their positions."""
        part = slice(rows.start, rows.stop)
        return sha256(self.numbers[part].tobytes() + self.digests[part].tobytes()).hexdigest()[:16]

    def rows_between(self, first: int, last: int) -> range:
        """The rows of the lines from number `first` to `last`."""
        return range(bisect_left(self.numbers, first), bisect_left(self.numbers, last + 1))


def read_lines(path: Path, text_field: str) -> Iterator[Line]:
    """Every line of a file that is not blank."""
    with path.open("rb") as file:
        for number, content in enumerate(file):
            if number == 0:
                content = content.removeprefix(BOM)
            if content.strip():
                yield read_line(number, content, text_field)


def read_line(number: int, content: bytes, text_field: str) -> Line:
    try:
        row = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        return Line(number=number, text="", fault=f" is not valid JSON: {error}")
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return Line(number=number, text="", fault=f" must be an object with a string in {text_field!r}")
    if not text:
        return Line(number=number, text="", fault=": input must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start} is half a surrogate pair"
        return Line(number=number, text="", fault=f": input must be valid Unicode ({half})")
    return Line(number=number, text=text)
