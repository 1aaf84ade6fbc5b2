"""Files of text, read with a clear error; files and folders replaced whole, so that nobody meets half of one."""

import os
import shutil
from pathlib import Path


def read_text(path: Path) -> str:
    """What `path` holds. Raises ValueError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def replace_text(path: Path, text: str) -> None:
    """Write `path` so that a crash at any moment leaves the old text or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def empty_staging(place: Path) -> Path:
    """An empty folder beside `place`, to be filled and then put there by `replace_folder`."""
    staging = place.with_name(place.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True)
    return staging


def replace_folder(new: Path, place: Path) -> None:
    """Put `new` in the place of `place`; a crash between the two renames leaves the old one beside it, as `.old`."""
    old = place.with_name(place.name + ".old")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed below
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
