"""Running one step: pieces of sequences in, logits, tokens and traces out. Knows no queue and no thread.

A request's numbers must not depend on its company, to the bit, since one bit can swap two neurons. So on CPU every
product is a `PackedLinear`, attention runs one sequence's positions at a time (a decoding row, or a piece of a prompt
cut at fixed positions), and everything but the products runs on one thread: torch's attention kernel rounds
differently on its first thread and on the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from service.engine.config import EngineConfig
from service.engine.kv_cache import NULL_BLOCK, KVCache
from service.engine.request import TokenLogprobs
from service.engine.sampler import Sampler, top_logprobs
from service.engine.scheduler import Piece
from service.engine.scheduler import Sequence as Seq
from topk_model.configuration import TopKLMConfig
from topk_model.editing import EditedTopK, EditTables
from topk_model.interventions import Receipt
from topk_model.modeling import TopKLMForCausalLM
from topk_model.packing import pack_linears
from topk_model.traces import TraceChunk, select_entries


@dataclass(frozen=True, kw_only=True)
class PieceResult:
    """What one step found out about one piece."""

    token_id: int | None = None  # drawn after the piece
    logprobs: TokenLogprobs | None = None  # of that token
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()  # of the piece's own tokens
    trace: TraceChunk | None = None
    is_finite: bool = True  # false: logits or edited states hold infinities or NaN, and nothing else means anything


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's tokens in one row each: first the rows that decode, then the pieces of prompts one after the other."""

    pieces: Sequence[Piece]
    num_decodes: int
    bounds: NDArray[np.int64]  # first row of each piece, and the number of rows
    slots: NDArray[np.int64]  # [rows]
    token_ids: Tensor  # [rows]
    positions: Tensor  # [rows]
    places: Tensor  # [rows], where keys and values go
    is_counted: Tensor  # [rows], whether edits enter the receipts
    tables: Tensor  # [pieces, blocks], block tables padded with the null block

    @property
    def num_rows(self) -> int:
        return int(self.bounds[-1])


class Runner:
    """A model on its device, with everything a step touches allocated once."""

    def __init__(self, model: TopKLMForCausalLM, config: EngineConfig, special_ids: Iterable[int] = ()) -> None:
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
        eos = self.shape.eos_token_id
        eos_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.eos_ids = frozenset(eos_ids)
        named = {self.shape.bos_token_id, self.shape.pad_token_id, *eos_ids, *special_ids}
        special = [i for i in named if i is not None and i < self.shape.vocab_size]
        self.is_special = torch.zeros(self.shape.vocab_size, dtype=torch.bool, device=self.device)
        self.is_special[special] = True

    def open(self, sequence: Seq) -> None:
        """Prepare an admitted sequence's slot."""
        self.sampler.load(sequence.slot, sequence.request.sampling)
        self.edits.load(sequence.slot, sequence.request.interventions)

    def close(self, sequence: Seq) -> None:
        """Leave an admitted sequence's blocks as another may find them; call it before they are freed."""
        if sequence.request.interventions:
            self.cache.wipe(sequence.blocks)

    def receipts(self, sequence: Seq) -> tuple[Receipt, ...]:
        return self.edits.receipts(sequence.slot)

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> list[PieceResult]:
        """Read the pieces, decoding ones first, and draw the tokens that follow them."""
        if self.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        batch = self._lay_out(pieces)
        traced = [i for i, piece in enumerate(pieces) if _traced_range(piece) is not None]
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
        attend = _Attention(self.cache, batch, self.groups)
        embedded = self.model.model.embed_tokens(batch.token_ids)
        hidden = self.model.model.run_blocks(embedded, batch.positions, attend, sparsify)
        sparsify.finish()
        results: list[dict[str, object]] = [{} for _ in pieces]
        self._sample(batch, hidden, results)
        self._score_prompts(batch, hidden, results)
        if states is not None and traced:
            self._trace(batch, states, traced, results)
        for i in np.searchsorted(batch.bounds, sparsify.overflowed_rows(), side="right") - 1:
            results[i]["is_finite"] = False
        return [PieceResult(**result) for result in results]  # type: ignore[arg-type]

    def _lay_out(self, pieces: Sequence[Piece]) -> Batch:
        sizes = np.array([piece.num_tokens for piece in pieces])
        bounds = np.concatenate(([0], np.cumsum(sizes)))
        slots = np.repeat(np.array([piece.sequence.slot for piece in pieces]), sizes)
        starts = np.repeat(np.array([piece.start for piece in pieces]) - bounds[:-1], sizes)
        positions = starts + np.arange(bounds[-1])
        token_ids = np.array([piece.sequence.token_at(p) for piece in pieces for p in range(piece.start, piece.end)])
        # The trace of a last token is no step of the generation: its edits have no effect to report.
        is_counted = np.repeat(np.array([piece.sequence.finish_reason is None for piece in pieces]), sizes)
        block_size = self.config.block_size
        num_blocks = max(-(-piece.end // block_size) for piece in pieces)
        tables = np.full((len(pieces), num_blocks), NULL_BLOCK)
        for row, piece in enumerate(pieces):
            used = piece.sequence.blocks[:num_blocks]
            tables[row, : len(used)] = used
        places = tables[np.repeat(np.arange(len(pieces)), sizes), positions // block_size] * block_size
        places += positions % block_size
        packed = torch.from_numpy(np.stack((token_ids, positions, places, is_counted))).to(self.device)
        return Batch(
            pieces=pieces,
            num_decodes=sum(not piece.is_prefill for piece in pieces),
            bounds=bounds,
            slots=slots,
            token_ids=packed[0],
            positions=packed[1],
            places=packed[2],
            is_counted=packed[3].bool(),
            tables=torch.from_numpy(tables).to(self.device),
        )

    def _sample(self, batch: Batch, hidden: Tensor, results: list[dict[str, object]]) -> None:
        """Draw a token for each piece that ends where one is due."""
        drawing = [i for i, piece in enumerate(batch.pieces) if piece.samples]
        if not drawing:
            return
        rows = torch.from_numpy(batch.bounds[1:][drawing] - 1).to(self.device)
        sequences = [batch.pieces[i].sequence for i in drawing]
        logits = self.model.lm_head(hidden[rows]).float()
        is_finite = logits.isfinite().all(-1)
        logits = torch.where(is_finite[:, None], logits, 0.0)
        slots = np.array([s.slot for s in sequences])
        steps = np.array([len(s.output_ids) for s in sequences])
        token_ids = self.sampler.sample(logits, slots, steps)
        wanted = [n for n, s in enumerate(sequences) if s.request.logprobs is not None]
        scored: dict[int, TokenLogprobs] = {}
        if wanted:
            which = torch.tensor(wanted, device=self.device)
            num_top = [sequences[n].request.logprobs or 0 for n in wanted]
            for n, (logprob, top) in zip(wanted, top_logprobs(logits[which], token_ids[which], num_top), strict=True):
                scored[n] = TokenLogprobs(logprob=logprob, top=tuple(top))
        for n, (i, token_id, finite) in enumerate(zip(drawing, token_ids.tolist(), is_finite.tolist(), strict=True)):
            results[i].update(token_id=token_id, is_finite=finite, logprobs=scored.get(n))

    def _score_prompts(self, batch: Batch, hidden: Tensor, results: list[dict[str, object]]) -> None:
        """Log-probabilities of prompt tokens, for the pieces whose request wants them.

        A piece scores the tokens that its rows predict: from the one after its first up to the one after its last.
        """
        for i, piece in enumerate(batch.pieces):
            num_top = piece.sequence.request.prompt_logprobs
            if num_top is None or not piece.is_prefill:
                continue
            prompt = piece.sequence.request.prompt_ids
            targets = prompt[piece.start + 1 : piece.end + 1]
            first: tuple[TokenLogprobs | None, ...] = (None,) if piece.start == 0 else ()
            scored = []
            if targets:
                row = int(batch.bounds[i])
                logits = self.model.lm_head(hidden[row : row + len(targets)]).float()
                ids = torch.tensor(targets, device=self.device)
                results[i]["is_finite"] = results[i].get("is_finite", True) and bool(logits.isfinite().all())
                scored = top_logprobs(logits, ids, [num_top] * len(targets))
            results[i]["prompt_logprobs"] = first + tuple(TokenLogprobs(logprob=c, top=tuple(t)) for c, t in scored)

    def _trace(self, batch: Batch, states: Tensor, traced: list[int], results: list[dict[str, object]]) -> None:
        """Cut the traced pieces' rows out of the states: one look at the device for all of them."""
        ranges = {i: r for i in traced if (r := _traced_range(batch.pieces[i])) is not None}
        spans = {i: batch.bounds[i] - batch.pieces[i].start + np.array(r) for i, r in ranges.items()}
        rows = torch.from_numpy(np.concatenate([np.arange(*span) for span in spans.values()])).to(self.device)
        chosen = states[:, rows].transpose(0, 1)  # [traced rows, layers, hidden_size]
        where = chosen.nonzero()
        found = chosen[where[:, 0], where[:, 1], where[:, 2]].float().cpu().numpy()
        counts = (chosen != 0).sum(-1).cpu().numpy()  # [traced rows, layers]
        indices = where[:, 2].cpu().numpy().astype(np.int32)
        ends = np.concatenate(([0], counts.sum(1).cumsum()))
        row = 0
        for i, span in spans.items():
            spec, size = batch.pieces[i].sequence.request.trace, int(span[1] - span[0])
            assert spec is not None
            entries = slice(ends[row], ends[row + size])
            results[i]["trace"] = select_entries(
                spec, ranges[i][0], self.num_topk_layers, counts[row : row + size], indices[entries], found[entries]
            )
            row += size


def _traced_range(piece: Piece) -> tuple[int, int] | None:
    """The positions of a piece that its request traces, half-open; None where there are none."""
    spec = piece.sequence.request.trace
    if spec is None:
        return None
    start, end = max(piece.start, spec.start), piece.end if spec.end is None else min(piece.end, spec.end)
    return (start, end) if start < end else None


class _Attention:
    """The `Attend` of one step: stores the rows' keys and values, then lets each sequence look at its own."""

    def __init__(self, cache: KVCache, batch: Batch, groups: int) -> None:
        self.cache, self.batch, self.groups = cache, batch, groups
        block_size = cache.keys.shape[2]
        count, bounds = batch.num_decodes, batch.bounds
        #: (rows, block tables, mask [seqs, 1, queries or 1, length]) of each call to the kernel
        self.calls: list[tuple[slice, Tensor, Tensor]] = []
        if count:
            ends = [-(-piece.end // block_size) for piece in batch.pieces[:count]]
            self._add(slice(0, count), batch.tables[:count, : max(ends)], batch.positions[:count, None], block_size)
        for i in range(count, len(batch.pieces)):
            rows = slice(int(bounds[i]), int(bounds[i + 1]))
            num_blocks = -(-batch.pieces[i].end // block_size)
            self._add(rows, batch.tables[i : i + 1, :num_blocks], batch.positions[None, rows], block_size)

    def _add(self, rows: slice, tables: Tensor, positions: Tensor, block_size: int) -> None:
        """`positions`: `[seqs, queries]`, each query sees its own position and those before it."""
        length = torch.arange(tables.shape[1] * block_size, device=tables.device)
        mask = (length <= positions[..., None])[:, None]  # [seqs, 1, queries, length]
        if mask.shape[2] > 1:
            mask = mask.repeat(1, 1, self.groups, 1)
        self.calls.append((rows, tables, mask))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.cache.write(layer, self.batch.places, key, value)
        out = torch.empty_like(query)  # [rows, heads, head_dim]
        for rows, tables, mask in self.calls:
            keys, values = self.cache.read(layer, tables)
            seqs, kv_heads, head_dim = keys.shape[0], keys.shape[1], keys.shape[3]
            # The queries of the heads that share a key head go in as that head's queries.
            mine = query[rows].view(seqs, -1, kv_heads, self.groups, head_dim)
            num_queries = mine.shape[1]
            mine = mine.permute(0, 2, 3, 1, 4).reshape(seqs, kv_heads, self.groups * num_queries, head_dim)
            seen = F.scaled_dot_product_attention(mine, keys, values, attn_mask=mask)
            seen = seen.view(seqs, kv_heads, self.groups, num_queries, head_dim).permute(0, 3, 1, 2, 4)
            out[rows] = seen.reshape(-1, kv_heads * self.groups, head_dim)
        return out.flatten(1)
