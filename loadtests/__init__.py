"""Measurements of a running service, for whoever wants numbers of their own machine. Not part of the package."""
