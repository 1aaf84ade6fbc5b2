"""Reading text files with clear errors; replacing files and folders atomically, so that nobody sees half of one."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The text in `path`, without the byte order mark that some editors write. Raises ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError if it is missing, ValueError if it is not a JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a JSON object")
    return fields


def replace_text(path: Path, text: str) -> None:
    """Write `path` so that a crash at any moment leaves the old text or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def empty_staging(place: Path) -> Path:
    """An empty folder next to `place`, to be filled and then moved there by `replace_folder`."""
    staging = place.with_name(place.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True)
    return staging


def replace_folder(new: Path, place: Path) -> None:
    """Replace `place` by `new`; a crash between the two renames leaves the old folder next to it, as `.old`."""
    old = place.with_name(place.name + ".old")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed below
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
