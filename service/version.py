"""The version of the installed package."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version() -> str:
    try:
        return version("topk-serve")
    except PackageNotFoundError:
        return "0+unknown"
