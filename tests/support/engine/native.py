"""The compiled step without a model."""

#: An engine of one small layer.
GOOD = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 8, "num_topk_layers": 1, "topk_k": 4, "select_abs": 0, "is_tied": 1, "num_blocks": 4, "block_size": 16,
    "max_rows": 8, "num_slots": 2, "max_edits": 4, "max_conditions": 2, "num_threads": 1, "storage": 0,
    "rms_norm_eps": 1e-6,
}  # fmt: skip
