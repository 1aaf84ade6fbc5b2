"""The neuron catalogues of the served models, opened on the first request for them.

A checkpoint's catalogue is read without loading its weights. Knows no engine and no transport.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from service.errors import InternalError, NotFoundError, invalid
from service.serving.registry import ModelRegistry
from topk_model.catalogue.history import RunCatalogues
from topk_model.catalogue.reader import Catalogue
from topk_model.checkpoints import checkpoint_folder

Opened = TypeVar("Opened", Catalogue, RunCatalogues)


class Catalogues:
    """Open catalogues, about 1 MB each: one per requested checkpoint, and for a history all of a model's.

    All methods belong to one event loop.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._checkpoints: dict[str, Catalogue] = {}
        self._runs: dict[str, RunCatalogues] = {}
        self._lock = asyncio.Lock()

    async def of(self, name: str) -> Catalogue:
        """The catalogue of a model or checkpoint.

        Raises:
            ServiceError: there is no such model, it has no catalogue, or one that cannot be used.
        """
        served, step = self._registry.find(name)
        if step is not None:
            return await self._open(self._checkpoints, name, Catalogue.open, checkpoint_folder(served.folder, step))
        if served.catalogue is None:
            raise no_catalogue(name)
        return served.catalogue

    async def of_run(self, name: str) -> RunCatalogues:
        """The catalogues of a model and of all its checkpoints; raises like `of`, and for a checkpoint's name."""
        served, step = self._registry.find(name)
        if step is not None:
            raise invalid("model", f"must be a model for a history, like {served.facts.id!r}, not a checkpoint", name)
        return await self._open(self._runs, name, RunCatalogues.open, served.folder)

    async def _open(
        self, opened: dict[str, Opened], name: str, open_folder: Callable[[Path], Opened], folder: Path
    ) -> Opened:
        if name not in opened:
            async with self._lock:
                if name not in opened:
                    try:
                        opened[name] = await asyncio.to_thread(open_folder, folder)
                    except FileNotFoundError:
                        raise no_catalogue(name) from None
                    except ValueError as error:
                        reason = str(error).replace(f"{folder}/", "")
                        raise InternalError(
                            f"the catalogue of {name} cannot be used: {reason}", code="catalogue_unreadable"
                        ) from None
        return opened[name]


def no_catalogue(name: str) -> NotFoundError:
    """The 404 for a model without a catalogue."""
    return NotFoundError(
        f"{name} has no neuron catalogue; build one with topk catalogue --model <its folder> and start the service "
        "again",
        param="model",
        code="no_catalogue",
    )
