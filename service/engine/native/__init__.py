"""The compiled CPU step: C++ behind a plain C interface, and the runner that calls it."""
