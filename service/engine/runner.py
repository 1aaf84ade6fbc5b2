"""Runs one step: pieces of sequences in, logits, tokens and traces out. Knows no queue and no thread.

A request's numbers must not depend, to the bit, on the rest of its batch, since one bit can swap two neurons. So on
CPU every product is a `PackedLinear`, attention runs one sequence's positions at a time (a decoding row, or a piece of
a prompt cut at fixed positions), and everything except the products runs on one thread: torch's attention kernel
rounds differently on its first thread than on the others.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from service.engine.attention import PagedAttention
from service.engine.batch import Batch
from service.engine.config import EngineConfig
from service.engine.kv_cache import KVCache
from service.engine.request import TokenLogprobs
from service.engine.sampler import Sampler, top_logprobs
from service.engine.sequence import Piece, PieceResult, Sequence
from service.engine.torch_ablator import TorchAblator
from topk_model.configuration import TopKLMConfig
from topk_model.editing import EditedTopK, EditTables
from topk_model.interventions import Intervention, Receipt
from topk_model.modeling import TopKLMForCausalLM
from topk_model.packing import pack_linears
from topk_model.traces import select_entries
from topk_model.transfer import to_device, to_host


class Runner:
    """A model on its device, with everything that a step uses allocated once."""

    is_cut_free = False  # the rounding depends on how a prompt is cut

    def __init__(
        self, model: TopKLMForCausalLM, config: EngineConfig, special_ids: Iterable[int] | None = None
    ) -> None:
        self.model, self.config = model, config
        self.shape: TopKLMConfig = model.config
        self.device, dtype = model.device, model.dtype
        if self.device.type == "cpu":
            pack_linears(model, config.num_threads)
        self.groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        self.cache = KVCache(self.shape, config.num_blocks, config.block_size, self.device, dtype)
        self.sampler = Sampler(config.max_num_seqs, self.shape.vocab_size, self.device)
        self.edits = EditTables(self.shape, config.max_num_seqs, self.device)
        self.num_topk_layers = self.shape.num_topk_layers
        self.states = torch.zeros(
            self.num_topk_layers, config.max_step_tokens, self.shape.hidden_size, device=self.device, dtype=dtype
        )
        self.eos_ids, is_special = special_mask(self.shape, special_ids)
        self.is_special = is_special.to(self.device)

    def open(self, sequence: Sequence) -> None:
        """Prepare an admitted sequence's slot."""
        self.sampler.load(sequence.slot, sequence.request.sampling)
        self.edits.load(sequence.slot, sequence.request.interventions)

    def close(self, sequence: Sequence, freed: list[int]) -> None:
        """Clean those of a sequence's blocks that have become free, for the next owner."""
        if sequence.request.interventions and freed:
            self.cache.wipe(freed)

    def ablator(
        self, prompt_ids: Iterable[int], interventions: Iterable[Intervention], layers: Iterable[int], num_threads: int
    ) -> TorchAblator:
        """Ablations of a prompt under edits, by the same model; for any thread. They have torch's threads."""
        return TorchAblator(self, tuple(prompt_ids), tuple(interventions), tuple(layers))

    def receipts(self, sequence: Sequence) -> tuple[Receipt, ...]:
        return self.edits.receipts(sequence.slot)

    @torch.inference_mode()
    def run(self, pieces: list[Piece]) -> list[PieceResult]:
        """Read the pieces, decoding ones first, and draw the tokens that follow them."""
        if self.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        batch = Batch.of(pieces, self.config.block_size, self.device)
        traced = [i for i, piece in enumerate(pieces) if piece.traced_range is not None]
        has_conditions = bool(self.edits.num_conditions[batch.slots].any())
        states = self.states[:, : batch.num_rows] if traced or has_conditions else None
        sparsify = EditedTopK(
            self.edits,
            self.shape,
            batch.slots,
            batch.positions,
            self.is_special[batch.token_ids],
            batch.is_counted,
            states,
        )
        attend = PagedAttention(self.cache, batch, self.groups)
        embedded = self.model.model.embed_tokens(batch.token_ids)
        hidden = self.model.model.run_blocks(embedded, batch.positions, attend, sparsify)
        sparsify.finish()
        results = [PieceResult() for _ in pieces]
        drawing = [i for i, piece in enumerate(batch.pieces) if piece.samples]
        drawn = self._sample(batch, drawing, hidden) if drawing else ()
        # The only synchronization with the device in a step that neither traces nor scores.
        found = to_host([*drawn[:2], *sparsify.looks()])
        if drawn:
            for i, token_id, is_finite in zip(drawing, found[0].tolist(), found[1].tolist(), strict=True):
                results[i].token_id, results[i].is_finite = token_id, is_finite
            self._score_drawn(batch, drawing, drawn[0], drawn[2], results)
        self._score_prompts(batch, hidden, results)
        if states is not None and traced:
            self._trace(batch, states, traced, results)
        for i in np.searchsorted(batch.bounds, sparsify.overflowed_rows(found[len(drawn[:2]) :]), side="right") - 1:
            results[i].is_finite = False
        return results

    def _sample(self, batch: Batch, drawing: list[int], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a token for each piece of `drawing`: token ids, whether they are valid, logits; one row per piece."""
        rows = to_device(batch.bounds[1:][drawing] - 1, self.device)
        sequences = [batch.pieces[i].sequence for i in drawing]
        logits = self.model.lm_head(hidden[rows]).float()
        is_finite = logits.isfinite().all(-1)
        logits = torch.where(is_finite[:, None], logits, 0.0)
        slots = np.array([s.slot for s in sequences])
        steps = np.array([len(s.output_ids) for s in sequences])
        return self.sampler.sample(logits, slots, steps), is_finite, logits

    def _score_drawn(
        self, batch: Batch, drawing: list[int], token_ids: Tensor, logits: Tensor, results: list[PieceResult]
    ) -> None:
        """Log-probabilities of the drawn tokens, for the pieces whose request asks for them."""
        num_top = {n: batch.pieces[i].sequence.request.logprobs for n, i in enumerate(drawing)}
        wanted = [n for n, count in num_top.items() if count is not None]
        if not wanted:
            return
        which = to_device(np.array(wanted), self.device)
        scored = top_logprobs(logits[which], token_ids[which], [num_top[n] or 0 for n in wanted])
        for n, (logprob, top) in zip(wanted, scored, strict=True):
            results[drawing[n]].logprobs = TokenLogprobs(logprob=logprob, top=tuple(top))

    def _score_prompts(self, batch: Batch, hidden: Tensor, results: list[PieceResult]) -> None:
        """Log-probabilities of prompt tokens, for the pieces whose request asks for them.

        A piece scores the tokens that its rows predict: from the one after its first up to the one after its last.
        """
        for i, piece in enumerate(batch.pieces):
            num_top = piece.sequence.request.prompt_logprobs
            if num_top is None or not piece.is_prefill or piece.is_repeated:
                continue
            prompt = piece.sequence.request.prompt_ids
            targets = prompt[piece.start + 1 : piece.end + 1]
            first: tuple[TokenLogprobs | None, ...] = (None,) if piece.start == 0 else ()
            scored = []
            if targets:
                row = int(batch.bounds[i])
                logits = self.model.lm_head(hidden[row : row + len(targets)]).float()
                ids = to_device(np.array(targets), self.device)
                results[i].is_finite &= bool(logits.isfinite().all())
                scored = top_logprobs(logits, ids, [num_top] * len(targets))
            results[i].prompt_logprobs = first + tuple(TokenLogprobs(logprob=c, top=tuple(t)) for c, t in scored)

    def _trace(self, batch: Batch, states: Tensor, traced: list[int], results: list[PieceResult]) -> None:
        """Copy the traced pieces' rows out of the states, with one transfer from the device for all of them."""
        ranges = {i: r for i in traced if (r := batch.pieces[i].traced_range) is not None}
        spans = {i: batch.bounds[i] - batch.pieces[i].start + np.array(r) for i, r in ranges.items()}
        rows = to_device(np.concatenate([np.arange(*span) for span in spans.values()]), self.device)
        chosen = states[:, rows].transpose(0, 1)  # [traced rows, layers, hidden_size]
        where = chosen.nonzero()
        found, counts, indices = to_host(
            [
                chosen[where[:, 0], where[:, 1], where[:, 2]].float(),
                (chosen != 0).sum(-1),  # [traced rows, layers]
                where[:, 2].int(),
            ]
        )
        ends = np.concatenate(([0], counts.sum(1).cumsum()))
        row = 0
        for i, span in spans.items():
            spec, size = batch.pieces[i].sequence.request.trace, int(span[1] - span[0])
            assert spec is not None
            entries = slice(ends[row], ends[row + size])
            results[i].trace = select_entries(
                spec, ranges[i][0], self.num_topk_layers, counts[row : row + size], indices[entries], found[entries]
            )
            row += size


def special_mask(shape: TopKLMConfig, special_ids: Iterable[int] | None) -> tuple[frozenset[int], Tensor]:
    """The ids that end a sequence, and which tokens are special `[vocab_size]` (default: the configuration's)."""
    eos = shape.eos_token_id
    eos_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    named = {shape.bos_token_id, shape.pad_token_id, *eos_ids} if special_ids is None else special_ids
    special = [i for i in named if i is not None and i < shape.vocab_size]
    is_special = torch.zeros(shape.vocab_size, dtype=torch.bool)
    is_special[special] = True
    return frozenset(eos_ids), is_special
