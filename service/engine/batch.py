"""One step's tokens as tensors. Knows no model."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.kv_cache import NULL_BLOCK
from service.engine.sequence import Piece
from topk_model.transfer import to_device


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A step's tokens, one row each: first the decoding rows, then the pieces of prompts one after the other."""

    pieces: list[Piece]
    num_decodes: int
    bounds: NDArray[np.int64]  # first row of each piece, and the number of rows
    slots: NDArray[np.int64]  # [rows]
    token_ids: Tensor  # [rows]
    positions: Tensor  # [rows]
    places: Tensor  # [rows], where keys and values are stored
    is_counted: Tensor  # [rows], whether edits are counted in the receipts
    tables: Tensor  # [pieces, blocks], block tables padded with the null block

    @property
    def num_rows(self) -> int:
        return int(self.bounds[-1])

    @classmethod
    def of(cls, pieces: list[Piece], block_size: int, device: torch.device) -> "Batch":
        """Lay the pieces out, decoding ones first."""
        sizes = np.array([piece.num_tokens for piece in pieces])
        bounds = np.concatenate(([0], np.cumsum(sizes)))
        slots = np.repeat(np.array([piece.sequence.slot for piece in pieces]), sizes)
        starts = np.repeat(np.array([piece.start for piece in pieces]) - bounds[:-1], sizes)
        positions = starts + np.arange(bounds[-1])
        token_ids = np.array([piece.sequence.token_at(p) for piece in pieces for p in range(piece.start, piece.end)])
        is_counted = np.repeat(np.array([piece.counts for piece in pieces]), sizes)
        num_blocks = max(-(-piece.end // block_size) for piece in pieces)
        tables = np.full((len(pieces), num_blocks), NULL_BLOCK)
        for row, piece in enumerate(pieces):
            used = piece.sequence.blocks[:num_blocks]
            tables[row, : len(used)] = used
        places = tables[np.repeat(np.arange(len(pieces)), sizes), positions // block_size] * block_size
        places += positions % block_size
        packed = to_device(np.stack((token_ids, positions, places, is_counted)), device)
        return cls(
            pieces=pieces,
            num_decodes=sum(not piece.is_prefill for piece in pieces),
            bounds=bounds,
            slots=slots,
            token_ids=packed[0],
            positions=packed[1],
            places=packed[2],
            is_counted=packed[3].bool(),
            tables=to_device(tables, device),
        )
