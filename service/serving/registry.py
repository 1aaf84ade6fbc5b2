"""Which model a request means: one that is always loaded, or a training checkpoint that is loaded on demand.

Knows no transport and no Ray, whose multiplexing can replace `RecentModels`.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from service.answers.fields import model_entry
from service.errors import DeadlineError, InternalError, NotFoundError, UnavailableError
from service.observability.metrics import Metrics
from service.serving.loading import model_facts
from service.serving.model import ServedModel
from service.settings import Settings
from topk_model.catalogue.file import CATALOGUE_FILE
from topk_model.checkpoints import checkpoint_folder, read_config
from topk_model.model_folder import STEP_PREFIX, step_name

logger = logging.getLogger(__name__)

#: Separates a model's name from the training step in the name of a checkpoint.
STEP_SEPARATOR = f"@{STEP_PREFIX}"

LoadModel = Callable[[str], Awaitable[ServedModel]]
#: (loader, maximum number of models) -> a loader that keeps loaded models, and stops the least recently used one
#: before it loads another.
Multiplex = Callable[[LoadModel, int], LoadModel]


class RecentModels:
    """The bounded cache of loaded checkpoints if there is no Serve to multiplex; it follows Serve's rules."""

    def __init__(self, load: LoadModel, max_models: int) -> None:
        self._load = load
        self._max_models = max_models
        self._models: OrderedDict[str, ServedModel] = OrderedDict()  # least recently used first
        self._lock = asyncio.Lock()  # one model is loaded or stopped at a time

    async def __call__(self, name: str) -> ServedModel:
        if name not in self._models:
            async with self._lock:
                if name not in self._models:
                    await self._make_room()
                    self._models[name] = await self._load(name)
        self._models.move_to_end(name)
        return self._models[name]

    async def _make_room(self) -> None:
        while len(self._models) >= self._max_models:
            _, served = self._models.popitem(last=False)
            await served.stop()


class _Load:
    """A checkpoint that is being loaded for waiting requests."""

    task: asyncio.Task[ServedModel]

    def __init__(self) -> None:
        self.num_waiting = 0
        self.hold = ExitStack()  # keeps the model from the end of its load until the last of them has used it


class ModelRegistry:
    """The models of one replica.

    A checkpoint is loaded by the first request that names it, in a thread, so that other models' streams go on. At
    most `max_loaded_checkpoints` are in memory, besides the models themselves: before another one is loaded, the least
    recently used one is dropped, once its requests have ended or `drain_timeout_s` is over. One is loaded at a time.

    All methods belong to the event loop in which `start` was called.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        settings: Settings,
        metrics: Metrics,
        *,
        multiplex: Multiplex = RecentModels,
    ) -> None:
        self.models = dict(models)
        self._settings = settings
        self._metrics = metrics
        self._load_recent = multiplex(self._load, settings.max_loaded_checkpoints)
        self._loading: dict[str, _Load] = {}
        self._loaded: dict[str, ServedModel] = {}  # checkpoints
        self._unreadable: dict[str, str] = {}  # checkpoint -> what is wrong with its files
        self._is_stopping = False

    @property
    def running(self) -> list[ServedModel]:
        """Every model and checkpoint that has an engine. May be asked from any thread."""
        return [*self.models.values(), *(served for served in [*self._loaded.values()] if not served.is_stopped)]

    async def start(self) -> None:
        for served in self.models.values():
            await served.start()

    async def stop(self) -> None:
        """Stop every engine; see `ServedModel.stop`."""
        self._is_stopping = True
        await asyncio.gather(*(load.task for load in self._loading.values()), return_exceptions=True)
        await asyncio.gather(*(served.stop() for served in self.running))

    def find(self, name: str) -> tuple[ServedModel, int | None]:
        """The model that `name` means, and the step if it is a checkpoint of that model.

        Raises:
            NotFoundError: there is no model or checkpoint of that name.
        """
        if name in self.models:
            return self.models[name], None
        model, separator, step = name.rpartition(STEP_SEPARATOR)
        served = self.models.get(model) if separator else None
        checkpoint = f"{STEP_PREFIX}{step}"
        if served is not None and checkpoint in served.checkpoints:
            return served, int(step)
        if served is not None:
            kept = ", ".join(served.checkpoints) or "none"
            text = f"model {model!r} has no checkpoint {checkpoint[:100]!r}; it has: {kept}"
        else:
            names = ", ".join(map(repr, self.models))
            text = f"model {name[:100]!r} is not served here; {names} {'is' if len(self.models) == 1 else 'are'}"
        raise NotFoundError(text, param="model", code="model_not_found")

    @asynccontextmanager
    async def use(self, name: str, timeout_s: float) -> AsyncIterator[ServedModel]:
        """The model of that name, loading a checkpoint if needed; it stays loaded while the context is open.

        Raises:
            ServiceError: it does not exist, or cannot be loaded, or not within `timeout_s`.
        """
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        served, step = self.find(name)
        with ExitStack() as user:
            if step is None:
                user.enter_context(served.in_use())
            else:
                try:
                    async with asyncio.timeout(timeout_s):
                        served = await self._enter_checkpoint(name, user)
                except TimeoutError:
                    raise DeadlineError(f"the request's time ran out before {name} was loaded") from None
            yield served

    def card(self, name: str) -> dict[str, Any]:
        """The description of a model, or of a checkpoint, which need not be loaded.

        Raises:
            ServiceError: it does not exist, or its files cannot be read.
        """
        served, step = self.find(name)
        if step is None:
            return served.model_entry()
        folder = checkpoint_folder(served.folder, step)
        try:
            config = read_config(folder)
        except (OSError, ValueError) as error:
            raise cannot_load(name, str(error).replace(f"{served.folder}/", "")) from None
        loaded = next((one.facts.weights_sha256 for one in self.running if one.facts.id == name), None)
        facts = model_facts(name, config, served.tokenizer, checkpoint=step_name(step), weights_sha256=loaded)
        has_catalogue = (folder / CATALOGUE_FILE).is_file()
        return model_entry(facts, created=served.created, checkpoints=(), has_catalogue=has_catalogue)

    async def _enter_checkpoint(self, name: str, user: ExitStack) -> ServedModel:
        """The checkpoint as a served model, which `user` keeps loaded from now on."""
        if (reason := self._unreadable.get(name)) is not None:
            raise cannot_load(name, reason)
        if name in self._loaded and not self._loaded[name].is_stopping:
            served = await self._load_recent(name)  # returns at once and counts as a use
            user.enter_context(served.in_use())
            return served
        load = self._loading.get(name)
        if load is None:
            load = self._loading[name] = _Load()
            load.task = asyncio.create_task(self._load_once(name, load))
        load.num_waiting += 1
        try:
            # A client that disconnects is no reason to drop what others wait for or may request next.
            served = await asyncio.shield(load.task)
            user.enter_context(served.in_use())
            return served
        finally:
            load.num_waiting -= 1
            if not load.num_waiting:
                load.hold.close()

    async def _load_once(self, name: str, load: "_Load") -> ServedModel:
        try:
            served = await self._load_recent(name)
            if load.num_waiting:
                load.hold.enter_context(served.in_use())
            return served
        finally:
            del self._loading[name]

    async def _load(self, name: str) -> ServedModel:
        """A checkpoint, loaded and started. Invalid files are remembered, so that nothing is dropped for them
        again."""
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        served, step = self.find(name)
        # Stopped models must free their memory now.
        self._loaded = {name: loaded for name, loaded in self._loaded.items() if not loaded.is_stopped}
        load = partial(ServedModel.load, self._settings, self._metrics.of(name), model_id=name)
        try:
            loaded = await asyncio.to_thread(load, folder=served.folder, step=step)
        except (OSError, ValueError) as error:
            logger.error("%s cannot be loaded: %s", name, error)
            reason = str(error).replace(f"{served.folder}/", "")
            if isinstance(error, ValueError | FileNotFoundError):  # but not a disk failure, which may be temporary
                self._unreadable[name] = reason
            raise cannot_load(name, reason) from None
        await loaded.start()
        self._loaded[name] = loaded
        return loaded


def cannot_load(name: str, reason: str) -> InternalError:
    """The 500 for a checkpoint with invalid files; they are read again after a restart."""
    return InternalError(f"{name} cannot be loaded: {reason}", param="model", code="checkpoint_unreadable")
