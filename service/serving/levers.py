"""Levers for any words or texts, found beside running generations: HTTP and gRPC stand on this.

Knows no transport and no Ray.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

import torch

from service.answers.fields import Usage
from service.errors import DeadlineError, NotFoundError, QueueFullError
from service.requests.levers import LeversRequest, continuation, plan_levers
from service.requests.resolving import given
from service.requests.schema import CompletionRequest
from service.serving.catalogues import Catalogues
from service.serving.lever_replies import (
    LeverPrompt,
    LeverReply,
    LeverTexts,
    LeverWord,
    Neurons,
    edit_of,
    found_levers,
    message_of,
    per_1000,
)
from service.serving.model import ServedModel
from service.serving.registry import ModelRegistry
from service.serving.side_jobs import Progress, SideJob, SideJobs
from service.settings import Settings
from topk_model.catalogue.reader import Catalogue
from topk_model.checkpoints import load_model
from topk_model.model_folder import HELD_OUT
from topk_model.steering.bench import Lever
from topk_model.steering.finder import Found, LeverFinder, OrdinaryTexts, ordinary_texts

#: Tokens of an ordinary text that are continued if a request has no prompt.
OPENING_TOKENS = 16
#: How long a continuation waits before it tries again to enter a full queue, seconds.
RETRY_S = 0.2

#: What a search returns: levers, and the texts that they were found and measured on.
Searched = tuple[Found, OrdinaryTexts]


class Levers:
    """Finds levers in the models of a replica.

    The model that was asked for last is held once more, as torch has it: the engine's has no gradients.
    """

    def __init__(
        self, registry: ModelRegistry, catalogues: Catalogues, side_jobs: SideJobs, settings: Settings
    ) -> None:
        self._registry, self._catalogues, self._side_jobs = registry, catalogues, side_jobs
        self._settings = settings
        self._finder: tuple[str, LeverFinder] | None = None  # belongs to the thread of side jobs

    async def find(self, request: LeversRequest) -> AsyncGenerator[Progress | LeverReply, None]:
        """Progress as it comes, then the reply.

        Raises:
            ServiceError: there is no such model, it cannot be asked this, or not now.
        """
        timeout_s = given(request.timeout_s, self._settings.request_timeout_s)
        deadline = time.monotonic() + timeout_s
        async with self._registry.use(request.model, timeout_s) as served:
            asked = LeverQuestion(request, served, deadline)
            catalogue = await self._catalogue_of(request.model)
            search = partial(self._search, asked, *self._registry.find(request.model))
            async with aclosing(self._side_jobs.run("lever", search, timeout_s=asked.time_left_s)) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        yield event
            assert not isinstance(event, Progress)
            found, texts = event
            num_written = len(found.search.levers) + 1
            yield Progress(stage="continuing", done=0, total=num_written)
            yield await asked.reply(found, texts, await asyncio.to_thread(Neurons.of, found, catalogue))

    async def _catalogue_of(self, model: str) -> Catalogue | None:
        try:
            return await self._catalogues.of(model)
        except NotFoundError:
            return None

    def _search(self, asked: "LeverQuestion", model: ServedModel, step: int | None, job: SideJob[Searched]) -> Searched:
        """In the thread of side jobs, and in no other: torch's idle threads would spin beside the engine's.

        Args:
            model: the model, or the one that has the checkpoint of training step `step`.
        """
        torch.set_num_threads(1)
        request = asked.request
        finder = self._finder_of(request.model, model.folder, step, job)
        find: Callable[..., Found]
        if asked.plan.tree is not None:
            find = partial(finder.of_words, asked.plan.tree)
        else:
            assert asked.plan.contrast is not None
            find = partial(finder.of_texts, asked.plan.contrast)
        return find(max_cost=request.max_cost, limit=request.limit, watch=job), finder.texts

    def _finder_of(self, name: str, folder: Path, step: int | None, job: SideJob[Searched]) -> LeverFinder:
        if self._finder is None or self._finder[0] != name:
            self._finder = None  # its memory first
            job.report("loading", 0, 1)
            model, tokenizer = load_model(folder, step=step, device=self._settings.device)
            job.checkpoint()
            self._finder = name, LeverFinder(model, ordinary_texts(folder / HELD_OUT, model, tokenizer, job))
        return self._finder[1]


class LeverQuestion:
    """A request against its model, and how its reply is made.

    Raises:
        BadRequestError: the model cannot be asked this.
    """

    def __init__(self, request: LeversRequest, served: ServedModel, deadline: float) -> None:
        self.request, self.plan = request, plan_levers(request, served.planner)
        self._served, self._deadline = served, deadline

    @property
    def time_left_s(self) -> float:
        """Raises DeadlineError if there is none."""
        if (left := self._deadline - time.monotonic()) <= 0:
            raise DeadlineError()
        return left

    async def reply(self, found: Found, texts: OrdinaryTexts, neurons: Neurons) -> LeverReply:
        """The reply, once the continuations are written.

        Raises:
            ServiceError: as `ServedModel.answer`.
        """
        request, contrast = self.request, self.plan.contrast
        levers = [one.lever for one in found.search.levers]
        prompt, usage = None, Usage.of(0, 0)
        continuations: Sequence[str | None] = [None] * len(levers)
        if request.max_tokens:
            opening: str | list[int] = texts.measuring[0, : self._opening_length].tolist()
            prompt, continuations, usage = await self._continued(given(request.prompt, opening), levers)
        return LeverReply(
            model=request.model,
            is_moved=bool(levers),
            message=message_of(found, request.max_cost, are_words=self.plan.tree is not None),
            max_cost=request.max_cost,
            log_odds=round(found.log_odds, 4),
            per_1000_tokens=per_1000(found.rate),
            words=self._words(),
            texts=LeverTexts(
                source=texts.source,
                num_finding=len(texts.finding),
                num_measuring=len(texts.measuring),
                num_tokens=texts.finding.shape[1],
                is_target_held_out=contrast is None or contrast.can_be_held_out,
            ),
            levers=found_levers(found, neurons, continuations),
            tried=tuple(map(neurons.tried, found.search.tried)),
            prompt=prompt,
            usage=usage,
        )

    def _words(self) -> tuple[LeverWord, ...] | None:
        if self.request.words is None:
            return None
        name = self._served.tokenizer.token_text
        return tuple(
            LeverWord(word=word, token_ids=ids, tokens=tuple(map(name, ids)))
            for word, ids in zip(self.request.words, self.plan.words, strict=True)
        )

    @property
    def _opening_length(self) -> int:
        return max(1, min(OPENING_TOKENS, self._served.facts.context_length - self.request.max_tokens))

    async def _continued(
        self, prompt: str | list[int], levers: Sequence[Lever]
    ) -> tuple[LeverPrompt, list[str], Usage]:
        """The prompt with its plain continuation, the steered ones, and what they cost."""
        served, request = self._served, self.request
        edits = [None if lever is None else vars(edit_of(lever)) for lever in (None, *levers)]
        written = await asyncio.gather(*(self._continue(continuation(request, prompt, edit)) for edit in edits))
        (plain, _), *steered = written
        ids = served.tokenizer.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
        text = prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt)
        told = LeverPrompt(
            text=text,
            token_ids=ids,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            continuation=plain,
        )
        return told, [text for text, _ in steered], Usage.of(len(ids), sum(count for _, count in written))

    async def _continue(self, completion: CompletionRequest) -> tuple[str, int]:
        """The text, and how many tokens it has. A full queue is waited for: the search is not to be lost to it."""
        while True:
            left = completion.model_copy(update={"timeout_s": self.time_left_s})
            try:
                answer = await self._served.answer(left, uuid.uuid4().hex)
            except QueueFullError:
                await asyncio.sleep(min(RETRY_S, self.time_left_s))
                continue
            fragment = answer.choices[0].take()
            assert fragment is not None
            return fragment.text, answer.usage.completion_tokens
