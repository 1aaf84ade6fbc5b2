"""The runner on the compiled CPU step: does what `service.engine.runner.Runner` does, in one call per step."""

import ctypes
import struct
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.engine.config import EngineConfig
from service.engine.native import binding
from service.engine.native.ablator import CompiledAblator
from service.engine.native.binding import NativeEngine, Step
from service.engine.request import TokenLogprobs
from service.engine.runner import special_mask
from service.engine.sampler import Sampler
from service.engine.sequence import Piece, PieceResult, Sequence
from topk_model.configuration import TopKLMConfig
from topk_model.editing import EditTables
from topk_model.interventions import MAX_CONDITIONS, MAX_EDITS, Intervention, Receipt
from topk_model.modeling import TopKLMDecoderLayer, TopKLMForCausalLM
from topk_model.traces import TraceChunk, select_entries

CPU = torch.device("cpu")
_DRAWS, _COUNTS, _DRAWS_AND_SCORES = binding.DRAWS, binding.COUNTS, binding.DRAWS | binding.SCORES


def rotary_angles(config: TopKLMConfig, num_positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines `[positions, head_dim / 2]` of float32 angles, each correctly rounded."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inv_freq = (1.0 / config.rope_parameters["rope_theta"] ** exponent).numpy()
    angles = (np.arange(num_positions, dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class CompiledRunner:
    """A model packed for the compiled step, with everything that a step uses allocated once."""

    is_cut_free = True  # the rounding does not depend on how a prompt is cut

    def __init__(
        self,
        library: ctypes.CDLL,
        model: TopKLMForCausalLM,
        config: EngineConfig,
        special_ids: Iterable[int] | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.shape: TopKLMConfig = model.config
        self.num_topk_layers = self.shape.num_topk_layers
        self.sampler = Sampler(config.max_num_seqs, self.shape.vocab_size, CPU)
        self.edits = EditTables(self.shape, config.max_num_seqs, CPU)
        self.eos_ids, is_special = special_mask(self.shape, special_ids)
        self.is_special = is_special
        self.block_tables = np.zeros((config.max_num_seqs, config.num_blocks), dtype=np.int32)
        self._num_placed = [0] * config.max_num_seqs  # blocks of each slot in its table
        # Of the weights as they come: they are taken from the model once they have been packed.
        self._is_tied = model.lm_head.weight is model.model.embed_tokens.weight
        self.engine = NativeEngine(library, **self.sizes())
        self._load_weights()
        self.engine.bind(self._tables())
        self._num_positions = 0
        self._reach(self.shape.max_position_embeddings)
        self._pieces = np.zeros((config.max_num_seqs, len(binding.PIECE_COLUMNS)), dtype=np.int32)
        self._token_ids = np.zeros(config.max_step_tokens, dtype=np.int32)
        self._drawn_ids = np.zeros(config.max_num_seqs, dtype=np.int32)
        self._is_finite = np.zeros(config.max_num_seqs, dtype=np.uint8)
        self._logprobs = np.zeros(config.max_num_seqs + config.max_step_tokens, dtype=np.float32)
        most = config.max_step_tokens * self.num_topk_layers
        self._trace_offsets = np.zeros(most + 1, dtype=np.int64)
        self._trace_indices = np.zeros(most * self.engine.trace_width, dtype=np.int32)
        self._trace_values = np.zeros(most * self.engine.trace_width, dtype=np.float32)
        self._step = Step(
            struct_bytes=ctypes.sizeof(Step),
            pieces=self._pieces.ctypes.data,
            token_ids=self._token_ids.ctypes.data,
            drawn_ids=self._drawn_ids.ctypes.data,
            is_finite=self._is_finite.ctypes.data,
            logprobs=self._logprobs.ctypes.data,
            trace_room=len(self._trace_values),
            trace_offsets=self._trace_offsets.ctypes.data,
            trace_indices=self._trace_indices.ctypes.data,
            trace_values=self._trace_values.ctypes.data,
        )

    def open(self, sequence: Sequence) -> None:
        """Prepare an admitted sequence's slot."""
        self.sampler.load(sequence.slot, sequence.request.sampling)
        self.edits.load(sequence.slot, sequence.request.interventions)
        self._reach(sequence.request.num_positions)

    def close(self, sequence: Sequence, freed: list[int]) -> None:
        """Forget the sequence's blocks; a step reads no position of a block that its own sequence has not written."""
        self._num_placed[sequence.slot] = 0

    def receipts(self, sequence: Sequence) -> tuple[Receipt, ...]:
        return self.edits.receipts(sequence.slot)

    def run(self, pieces: list[Piece]) -> list[PieceResult]:
        """Read the pieces and draw the tokens that follow them."""
        ranges = [piece.traced_range for piece in pieces]
        step = self._step
        step.num_pieces, step.num_rows = len(pieces), self._lay_out(pieces, ranges)
        if any(
            p.sequence.request.logprobs is not None or p.sequence.request.prompt_logprobs is not None for p in pieces
        ):
            results = self._run_scored(pieces)
        else:
            step.num_scores = step.top_room = 0
            results = self._run_step(len(pieces))
        if any(ranges):
            self._add_traces(pieces, ranges, results)
        return results

    def _run_step(self, num_pieces: int) -> list[PieceResult]:
        self.engine.run(self._step)
        drawn, finite = self._drawn_ids[:num_pieces].tolist(), self._is_finite[:num_pieces].tolist()
        return [
            PieceResult(token_id=None if token_id < 0 else token_id, is_finite=is_finite != 0)
            for token_id, is_finite in zip(drawn, finite, strict=True)
        ]

    def _run_scored(self, pieces: list[Piece]) -> list[PieceResult]:
        """The step and its log-probabilities."""
        step = self._step
        tops, scores = self._scores(pieces)
        num_top = sum(tops) + sum(score[2] for score in scores)
        top_ids = np.empty(num_top, dtype=np.int32)
        top_logprobs = np.empty(num_top, dtype=np.float32)
        score_table = np.array(scores, dtype=np.int32)
        step.num_scores, step.scores = len(scores), score_table.ctypes.data if scores else None
        step.top_room, step.top_ids, step.top_logprobs = num_top, top_ids.ctypes.data, top_logprobs.ctypes.data
        results = self._run_step(len(pieces))
        self._add_logprobs(pieces, tops, scores, top_ids, top_logprobs, results)
        return results

    def _lay_out(self, pieces: list[Piece], ranges: list[tuple[int, int] | None]) -> int:
        """Fill the tables of pieces and tokens; returns the number of rows."""
        table: list[int] = []  # row by row
        token_ids: list[int] = []
        num_placed = self._num_placed
        for piece, traced in zip(pieces, ranges, strict=True):
            sequence, start, end = piece.sequence, piece.start, piece.end
            request, slot, output_ids = sequence.request, sequence.slot, sequence.output_ids
            if (placed := num_placed[slot]) != (num_blocks := len(sequence.blocks)):
                self.block_tables[slot, placed:num_blocks] = sequence.blocks[placed:]
                num_placed[slot] = num_blocks
            flags = _COUNTS if piece.counts else 0
            if piece.samples:
                flags |= _DRAWS if request.logprobs is None else _DRAWS_AND_SCORES
            first, last = traced or (start, start)
            table += (slot, start, end - start, flags)
            table += (len(output_ids), request.logprobs or 0, first - start, last - first)
            if end <= sequence.num_prompt:
                token_ids += request.prompt_ids[start:end]
            else:
                token_ids.append(output_ids[start - sequence.num_prompt])
        # This takes a tenth of the time that NumPy takes to read a list.
        struct.pack_into(f"{len(table)}i", self._pieces.data, 0, *table)
        struct.pack_into(f"{len(token_ids)}i", self._token_ids.data, 0, *token_ids)
        return len(token_ids)

    def _scores(self, pieces: list[Piece]) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The numbers of most probable tokens requested for drawn tokens, and the prompt tokens to score.

        A piece scores the tokens that its rows predict: from the one after its first up to the one after its last.
        """
        tops, scores, row = [], [], 0
        for piece in pieces:
            request = piece.sequence.request
            tops.append(request.logprobs or 0 if piece.samples else 0)
            if request.prompt_logprobs is not None and piece.is_prefill and not piece.is_repeated:
                targets = request.prompt_ids[piece.start + 1 : piece.end + 1]
                scores += [(row + n, target, request.prompt_logprobs) for n, target in enumerate(targets)]
            row += piece.num_tokens
        return tops, scores

    def _add_logprobs(
        self,
        pieces: list[Piece],
        tops: list[int],
        scores: list[tuple[int, int, int]],
        top_ids: NDArray[np.int32],
        top_logprobs: NDArray[np.float32],
        results: list[PieceResult],
    ) -> None:
        chosen = self._logprobs[: len(pieces) + len(scores)].tolist()
        pairs = list(zip(top_ids.tolist(), top_logprobs.tolist(), strict=True))
        at = 0

        def take(logprob: float, count: int) -> TokenLogprobs:
            nonlocal at
            at += count
            return TokenLogprobs(logprob=logprob, top=tuple(pairs[at - count : at]))

        for piece, num_top, logprob, result in zip(pieces, tops, chosen, results, strict=False):
            if piece.samples and piece.sequence.request.logprobs is not None:
                result.logprobs = take(logprob, num_top)
        following = iter(range(len(scores)))
        for piece, result in zip(pieces, results, strict=True):
            request = piece.sequence.request
            if request.prompt_logprobs is None or not piece.is_prefill or piece.is_repeated:
                continue
            first: tuple[TokenLogprobs | None, ...] = (None,) if piece.start == 0 else ()
            count = len(request.prompt_ids[piece.start + 1 : piece.end + 1])
            scored = [take(chosen[len(pieces) + next(following)], request.prompt_logprobs) for _ in range(count)]
            result.prompt_logprobs = first + tuple(scored)

    def _add_traces(
        self, pieces: list[Piece], ranges: list[tuple[int, int] | None], results: list[PieceResult]
    ) -> None:
        """Cut the step's states into the traces of its pieces."""
        total, layers = self._step.num_traced, self.num_topk_layers
        indices, values = self._trace_indices[:total].copy(), self._trace_values[:total].copy()
        offsets = self._trace_offsets
        state = 0
        for piece, traced, result in zip(pieces, ranges, results, strict=True):
            if traced is None:
                continue
            first, last = traced
            size, end = last - first, state + (last - first) * layers
            begin = offsets.item(state)
            own = offsets[state : end + 1] - begin
            entries = slice(begin, offsets.item(end))
            state = end
            spec, found, strengths = piece.sequence.request.trace, indices[entries], values[entries]
            assert spec is not None
            if spec.keeps_all(layers):
                result.trace = TraceChunk(
                    first_position=first, num_tokens=size, offsets=own, indices=found, values=strengths
                )
            else:
                counts = np.diff(own).reshape(size, layers)
                result.trace = select_entries(spec, first, layers, counts, found, strengths)

    def _reach(self, num_positions: int) -> None:
        """Ensure that there are rotary angles for sequences of that many positions."""
        if num_positions > self._num_positions:
            self._num_positions = max(num_positions, 2 * self._num_positions)
            self.engine.set_rope(*self.angles(self._num_positions))

    def angles(self, num_positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return rotary_angles(self.shape, num_positions)

    def ablator(
        self, prompt_ids: Iterable[int], interventions: Iterable[Intervention], layers: Iterable[int], num_threads: int
    ) -> CompiledAblator:
        """Ablations of a prompt under edits, by another engine over the same weights; for any thread."""
        return CompiledAblator(self, tuple(prompt_ids), tuple(interventions), tuple(layers), num_threads)

    def sizes(self) -> dict[str, Any]:
        shape, config = self.shape, self.config
        return {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_layers": shape.num_hidden_layers,
            "num_heads": shape.num_attention_heads,
            "num_kv_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "num_topk_layers": shape.num_topk_layers,
            "topk_k": shape.topk_k,
            "select_abs": int(shape.topk_select == "abs"),
            "is_tied": int(self._is_tied),
            "num_blocks": config.num_blocks,
            "block_size": config.block_size,
            "max_rows": config.max_step_tokens,
            "num_slots": config.max_num_seqs,
            "max_edits": MAX_EDITS,
            "max_conditions": MAX_CONDITIONS,
            "num_threads": config.num_threads,
            "storage": binding.STORAGES[config.weights],
            "rms_norm_eps": shape.rms_norm_eps,
        }

    def _load_weights(self) -> None:
        """Pack the weights, and remove each from the model once it is packed, so that it is in memory only once."""
        load, model = self.engine.load, self.model.model
        if not self._is_tied:
            load("embedding", _numpy(model.embed_tokens.weight))
        load("unembedding", _numpy(self.model.lm_head.weight))
        load("final_norm", _numpy(model.norm.weight))
        for i, layer in enumerate(cast(Iterable[TopKLMDecoderLayer], model.layers)):
            attention, mlp = layer.self_attn, layer.mlp
            for name, module in {
                "norm1": layer.input_layernorm,
                "q": attention.q_proj,
                "k": attention.k_proj,
                "v": attention.v_proj,
                "o": attention.o_proj,
                "norm2": layer.post_attention_layernorm,
                "gate": mlp.gate_proj,
                "up": mlp.up_proj,
                "down": mlp.down_proj,
            }.items():
                load(name, _numpy(cast(torch.Tensor, module.weight)), i)
        nothing = nn.Parameter(torch.empty(0), requires_grad=False)
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight = nothing

    def _tables(self) -> dict[str, NDArray[Any]]:
        return (
            self.edit_tables(self.edits)
            | self.sampling_tables()
            | {"is_special": self.is_special.numpy(), "block_tables": self.block_tables}
        )

    @staticmethod
    def edit_tables(edits: EditTables) -> dict[str, NDArray[Any]]:
        """Edits as the library reads them."""
        return {
            "edit_ints": edits.ints.numpy(),
            "edit_floats": edits.floats.numpy(),
            "conditions": edits.conditions.numpy(),
            "thresholds": edits.thresholds.numpy(),
            "num_edits": edits.num_edits,
            "num_conditions": edits.num_conditions,
            "num_interventions": edits.num_interventions,
            "tally": edits.tally.numpy(),
            "num_positions": edits.num_positions.numpy(),
            "first": edits.first.numpy(),
            "last": edits.last.numpy(),
        }

    def sampling_tables(self) -> dict[str, NDArray[Any]]:
        """Rules of sampling as the library reads them."""
        sampler = self.sampler
        return {
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "min_p": sampler.min_p,
            "presence": sampler.presence,
            "frequency": sampler.frequency,
            "top_k": sampler.top_k,
            "seed": sampler.seed,
            "has_bias": sampler.has_bias,
            "bias": sampler.bias.numpy(),
            "counts": sampler.counts.numpy(),
        }


def _numpy(weight: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = weight.detach().float().numpy()
    return array
