"""Which model a request means: one that is served all the time, or a kept state of its training, loaded when asked for.

Knows no transport and no Ray, whose multiplexing can take the place of `RecentHosts`.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

from service.errors import DeadlineError, InternalError, NotFoundError, UnavailableError
from service.http_api.shapes import model_card
from service.observability.metrics import Metrics
from service.serving.model import ModelHost, model_facts
from service.settings import Settings
from topk_model.catalogue.file import CATALOGUE_FILE
from topk_model.checkpoints import checkpoint_folder, read_config

logger = logging.getLogger(__name__)

#: What stands between a model's name and the step of its training in the name of a checkpoint.
STEP_SEPARATOR = "@step-"

LoadHost = Callable[[str], Awaitable[ModelHost]]
#: (loader, most hosts at once) -> a loader that keeps what it has loaded, and stops what was used least recently
#: before it loads another.
Multiplex = Callable[[LoadHost, int], LoadHost]


class RecentHosts:
    """The bounded cache of loaded checkpoints where there is no Serve to multiplex; it keeps to Serve's rules."""

    def __init__(self, load: LoadHost, max_hosts: int) -> None:
        self._load = load
        self._max_hosts = max_hosts
        self._hosts: OrderedDict[str, ModelHost] = OrderedDict()  # the least recently used first
        self._lock = asyncio.Lock()  # one comes or goes at a time

    async def __call__(self, name: str) -> ModelHost:
        if name not in self._hosts:
            async with self._lock:
                if name not in self._hosts:
                    await self._make_room()
                    self._hosts[name] = await self._load(name)
        self._hosts.move_to_end(name)
        return self._hosts[name]

    async def _make_room(self) -> None:
        while len(self._hosts) >= self._max_hosts:
            _, host = self._hosts.popitem(last=False)
            await host.stop()


class _Load:
    """A checkpoint being loaded for requests that wait."""

    task: asyncio.Task[ModelHost]

    def __init__(self) -> None:
        self.num_waiting = 0
        self.hold = ExitStack()  # keeps the host from the end of its load until the last of them has had its turn


class Hosts:
    """The models of one replica.

    A checkpoint is loaded by the first request that names it, in a thread, so that other models' streams go on. At
    most `max_loaded_checkpoints` are in memory, besides the models themselves: for another one the one used least
    recently has to go, once its requests have ended or `drain_timeout_s` is over. One is loaded at a time.

    All methods belong to the event loop in which `start` was called.
    """

    def __init__(
        self,
        models: Mapping[str, ModelHost],
        settings: Settings,
        metrics: Metrics,
        *,
        multiplex: Multiplex = RecentHosts,
    ) -> None:
        self.models = dict(models)
        self._settings = settings
        self._metrics = metrics
        self._load_recent = multiplex(self._load, settings.max_loaded_checkpoints)
        self._loading: dict[str, _Load] = {}
        self._loaded: dict[str, ModelHost] = {}  # checkpoints
        self._unreadable: dict[str, str] = {}  # checkpoint to what is wrong with its files
        self._is_stopping = False

    @property
    def running(self) -> list[ModelHost]:
        """Every model and checkpoint that has an engine."""
        return [*self.models.values(), *(host for host in self._loaded.values() if not host.is_stopped)]

    async def start(self) -> None:
        for host in self.models.values():
            await host.start()

    async def stop(self) -> None:
        """Stop every engine; see `ModelHost.stop`."""
        self._is_stopping = True
        await asyncio.gather(*(load.task for load in self._loading.values()), return_exceptions=True)
        await asyncio.gather(*(host.stop() for host in self.running))

    def find(self, name: str) -> tuple[ModelHost, int | None]:
        """The host of the model that `name` means, or of the model that keeps the checkpoint, and then its step.

        Raises:
            NotFoundError: nothing here has that name.
        """
        if name in self.models:
            return self.models[name], None
        model, separator, step = name.rpartition(STEP_SEPARATOR)
        host = self.models.get(model) if separator else None
        if host is not None and f"step-{step}" in host.checkpoints:
            return host, int(step)
        if host is not None:
            kept = ", ".join(host.checkpoints) or "none"
            text = f"model {model!r} keeps no checkpoint {f'step-{step}'[:100]!r}; it keeps: {kept}"
        else:
            names = ", ".join(map(repr, self.models))
            text = f"model {name[:100]!r} is not served here, {names} {'is' if len(self.models) == 1 else 'are'}"
        raise NotFoundError(text, param="model", code="model_not_found")

    @asynccontextmanager
    async def use(self, name: str, timeout_s: float) -> AsyncIterator[ModelHost]:
        """The model of that name, a checkpoint loaded first where it is not; it stays for as long as this lasts.

        Raises:
            ServiceError: there is none, it cannot be loaded, or not within `timeout_s`.
        """
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        host, step = self.find(name)
        with ExitStack() as user:
            if step is None:
                user.enter_context(host.in_use())
            else:
                try:
                    async with asyncio.timeout(timeout_s):
                        host = await self._enter_checkpoint(name, user)
                except TimeoutError:
                    raise DeadlineError(f"the request's time was up before {name} was loaded") from None
            yield host

    def card(self, name: str) -> dict[str, Any]:
        """What there is to know of a model, or of a checkpoint, which need not be loaded.

        Raises:
            ServiceError: there is none, or its files cannot be read.
        """
        host, step = self.find(name)
        if step is None:
            return host.model_card()
        folder = checkpoint_folder(host.folder, step)
        try:
            config = read_config(folder)
        except (OSError, ValueError) as error:
            raise cannot_load(name, str(error).replace(f"{host.folder}/", "")) from None
        loaded = next((one.facts.weights_sha256 for one in self.running if one.facts.id == name), None)
        facts = model_facts(name, config, host.tokenizer, checkpoint=f"step-{step}", weights_sha256=loaded)
        has_catalogue = (folder / CATALOGUE_FILE).is_file()
        return model_card(facts, created=host.created, checkpoints=(), has_catalogue=has_catalogue)

    async def _enter_checkpoint(self, name: str, user: ExitStack) -> ModelHost:
        """The checkpoint's host, which `user` keeps loaded from now on."""
        if (reason := self._unreadable.get(name)) is not None:
            raise cannot_load(name, reason)
        if name in self._loaded and not self._loaded[name].is_stopping:
            host = await self._load_recent(name)  # returns at once, and knows of another use
            user.enter_context(host.in_use())
            return host
        load = self._loading.get(name)
        if load is None:
            load = self._loading[name] = _Load()
            load.task = asyncio.create_task(self._load_once(name, load))
        load.num_waiting += 1
        try:
            # A client that goes is no reason to drop what others wait for, or will ask for next.
            host = await asyncio.shield(load.task)
            user.enter_context(host.in_use())
            return host
        finally:
            load.num_waiting -= 1
            if not load.num_waiting:
                load.hold.close()

    async def _load_once(self, name: str, load: "_Load") -> ModelHost:
        try:
            host = await self._load_recent(name)
            if load.num_waiting:
                load.hold.enter_context(host.in_use())
            return host
        finally:
            del self._loading[name]

    async def _load(self, name: str) -> ModelHost:
        """A new host of a checkpoint, started. Files that are wrong are remembered: nothing has to make room for them
        again."""
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        host, step = self.find(name)
        # What has been stopped has to free its memory now.
        self._loaded = {name: loaded for name, loaded in self._loaded.items() if not loaded.is_stopped}
        load = partial(ModelHost.load, self._settings, self._metrics.of(name), model_id=name)
        try:
            loaded = await asyncio.to_thread(load, folder=host.folder, step=step)
        except (OSError, ValueError) as error:
            logger.error("%s cannot be loaded: %s", name, error)
            reason = str(error).replace(f"{host.folder}/", "")
            if isinstance(error, ValueError | FileNotFoundError):  # not a disk that failed, which may come back
                self._unreadable[name] = reason
            raise cannot_load(name, reason) from None
        await loaded.start()
        self._loaded[name] = loaded
        return loaded


def cannot_load(name: str, reason: str) -> InternalError:
    """The 500 of a checkpoint whose files are not as they should be; a restart reads them again."""
    return InternalError(f"{name} cannot be loaded: {reason}", param="model", code="checkpoint_unreadable")
