"""Measurements of a running service, for numbers from your own machine. Not part of the package."""

from pathlib import Path

#: Default folder for records; git ignores it.
RESULTS = Path(__file__).parent / "results"
