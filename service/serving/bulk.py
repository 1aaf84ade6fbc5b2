"""Answers many inputs of one request, a few of them in the engine at once. Knows no transport."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from service.answers.answer import Answer
from service.errors import DeadlineError, QueueFullError, ServiceError, UnfitTextError
from service.requests.resolving import given, several
from service.requests.schema import (
    ActivationsStreamRequest,
)
from service.serving.model import ServedModel

#: How long an input waits before it tries again if the engine's queue is full.
QUEUE_RETRY_S = 0.05


async def answer_each(
    served: ServedModel, body: ActivationsStreamRequest, request_id: str
) -> AsyncGenerator[tuple[int, Answer | ServiceError], None]:
    """(input, answer) pairs as they become ready; only a few inputs are in the engine at once.

    If only one input is invalid, its answer is the error.

    Raises:
        ServiceError: the request cannot be served or cannot be continued.
    """
    inputs: list[Any] = several(body.input) or [body.input]
    clock = asyncio.get_running_loop().time
    end = clock() + given(body.timeout_s, served.settings.request_timeout_s)

    async def answer(index: int, one: Any) -> Answer:
        while (left := end - clock()) > 0:
            try:
                return await served.answer(body.model_copy(update={"input": one, "timeout_s": left}), request_id)
            except QueueFullError:
                if index == 0:  # a refusal of the first one is a refusal of the request
                    raise
                await asyncio.sleep(QUEUE_RETRY_S)
        raise DeadlineError()

    running: dict[asyncio.Task[Answer], int] = {}
    todo = enumerate(inputs)
    try:
        while True:
            while len(running) < served.settings.max_num_seqs and (item := next(todo, None)) is not None:
                running[asyncio.create_task(answer(*item))] = item[0]
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = running.pop(task)
                try:
                    result: Answer | ServiceError = task.result()
                except UnfitTextError as error:
                    result = error
                yield index, result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
