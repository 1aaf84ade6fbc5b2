"""llama.cpp on the plain Llama, by its Python package: `python -m … SHAPE FOLDER NUM_THREADS`.

Runs in an environment of `make compare`, which has llama-cpp-python, gguf and safetensors, and not our package.
"""

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from loadtests.compare.measured.worker import Measure, repeat, serve
from loadtests.compare.shapes import BY_NAME, MAX_POSITIONS, Shape, prompts

MAX_ROWS = 32
MAX_BATCH = 2048
KINDS = {"float32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0}
#: transformers' names of a block's weights, and llama.cpp's.
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(shape: Shape, weights: dict[str, Any], kind: str, path: Path) -> None:
    """Write a model as llama.cpp reads it, without a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(MAX_POSITIONS)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("no_vocab")
    add_tensor(writer, "token_embd.weight", weights["model.embed_tokens.weight"], kind)
    add_tensor(writer, "output_norm.weight", weights["model.norm.weight"], "float32")
    for layer in range(shape.num_layers):
        for theirs, name in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):  # its rotary pairs are neighbours
                halves = weight.reshape(-1, 2, shape.head_dim // 2, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            add_tensor(writer, f"blk.{layer}.{name}.weight", weight, kind if weight.ndim == 2 else "float32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer: Any, name: str, weight: Any, kind: str) -> None:
    data = np.ascontiguousarray(weight, dtype=np.float32)
    writer.add_tensor(name, gguf.quantize(data, KINDS[kind]), raw_dtype=KINDS[kind])


class LlamaBench:
    """A model in memory, and greedy decoding of some sequences together.

    Raises:
        RuntimeError: llama.cpp cannot load it.
    """

    def __init__(self, shape: Shape, path: Path, num_threads: int) -> None:
        self._shape = shape
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path.name}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = MAX_ROWS * 256, MAX_ROWS
        params.n_batch, params.n_ubatch = MAX_BATCH, 512
        params.n_threads = params.n_threads_batch = num_threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp has no context for it")
        self._batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)

    def generate(self, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        """Raises RuntimeError if a step fails."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        asked = prompts(self._shape, num_rows, seed)
        num_prompt = len(asked[0])
        places = [
            (row, at, token, at == num_prompt - 1) for row, ids in enumerate(asked) for at, token in enumerate(ids)
        ]
        drawn = self._step(places)
        for at in range(num_prompt, num_prompt + num_tokens - 1):
            drawn = self._step([(row, at, token, True) for row, token in enumerate(drawn)])
        return num_rows * num_tokens, 0, 0.0

    def _step(self, places: list[tuple[int, int, int, bool]]) -> list[int]:
        """Read tokens (row, position, id, whether one is to be drawn after it); the drawn ones."""
        batch, rows = self._batch, []
        batch.n_tokens = len(places)
        for i, (row, position, token, draws) in enumerate(places):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, draws
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            if draws:
                rows.append(i)
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._most_probable(i) for i in rows]

    def _most_probable(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, (self._shape.vocab_size,)).argmax())


def load() -> tuple[dict[str, Any], Measure]:
    name, folder, num_threads = sys.argv[1:]
    shape, weights = BY_NAME[name], load_file(Path(folder) / "llama" / "model.safetensors")
    llama_cpp.llama_backend_init()
    benches = {}
    for kind in KINDS:
        path = Path(folder) / f"{kind}.gguf"
        write_gguf(shape, weights, kind, path)
        benches[kind] = LlamaBench(shape, path, int(num_threads))

    def generate(case: str, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        return benches[case].generate(num_rows, num_tokens, seed)

    return {"version": version("llama-cpp-python")}, partial(repeat, generate)


if __name__ == "__main__":
    serve(load)
