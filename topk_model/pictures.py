"""What all pictures share: how they are drawn, their style, and that they are PNG files. Knows no picture.

matplotlib is imported only when something is drawn: the import takes a second, and most commands draw nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple["Figure", Any]]:
    """A figure and its axes `[rows, columns]`, each with a grid; written to `path` at the end.

    Args:
        options: those of `matplotlib.pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(rows, columns, squeeze=False, **options)
    for each in axes.flat:
        each.grid(alpha=0.3)
    yield drawn, axes
    drawn.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(drawn)


@contextmanager
def picture(path: Path, **labels: Any) -> Iterator[Any]:
    """The axes of a picture of one plot, written to `path` at the end."""
    with figure(path, figsize=(8, 4.5)) as (_, axes):
        yield axes[0, 0]
        axes[0, 0].set(**labels)
