"""The engine and the service beside others, and beside an older commit: `python -m loadtests.compare --help`."""
