"""The processes that are measured, each a program of its own that `loadtests.compare.sides` starts."""
