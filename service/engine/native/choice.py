"""Which runner an engine gets: the compiled step on a CPU that supports it, otherwise torch's."""

import ctypes
import functools
import logging
from collections.abc import Iterable

from service.engine.config import EngineConfig
from service.engine.native import binding, build
from service.engine.native.runner import CompiledRunner
from service.engine.runner import Runner
from topk_model.modeling import TopKLMForCausalLM

logger = logging.getLogger(__name__)


@functools.cache
def _library() -> ctypes.CDLL | Exception:
    """The library, or why there is none; found out once."""
    try:
        return binding.load_library(build.library())
    except (build.BuildError, binding.NativeError, OSError) as error:
        return error


@functools.cache
def _warn(reason: Exception) -> None:
    """One line in the log, however many engines there are."""
    logger.warning("running on torch, several times slower than the compiled step, which is unavailable: %s", reason)


def forget() -> None:
    """Find out anew what there is, as after a compiler has been installed."""
    _library.cache_clear()
    _warn.cache_clear()


def find_library(cpu_step: str) -> ctypes.CDLL | None:
    """The compiled step's library; None if `cpu_step` is "torch", or "auto" and no library is available.

    Raises:
        BuildError: `cpu_step` is "compiled" and the step is not available.
    """
    if cpu_step == "torch":
        return None
    found = _library()
    if not isinstance(found, Exception):
        return found
    if cpu_step == "compiled":
        raise build.BuildError(f"the compiled step is not available: {found}")
    _warn(found)
    return None


def make_runner(
    model: TopKLMForCausalLM, config: EngineConfig, special_ids: Iterable[int] | None = None
) -> Runner | CompiledRunner:
    """The runner for a model; it takes over the model's weights.

    Raises:
        BuildError: `cpu_step` is "compiled" and the step is not available.
    """
    library = find_library(config.cpu_step) if model.device.type == "cpu" else None
    if library is None:
        return Runner(model, config, special_ids)
    return CompiledRunner(library, model, config, special_ids)
