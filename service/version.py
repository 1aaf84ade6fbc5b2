"""The version of the package that is installed."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version() -> str:
    try:
        return version("topk-serve")
    except PackageNotFoundError:
        return "0+unknown"
