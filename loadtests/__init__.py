"""Measurements of a running service, for whoever wants numbers of their own machine. Not part of the package."""

from pathlib import Path

#: Where records go if nobody says otherwise; git ignores it.
RESULTS = Path(__file__).parent / "results"
