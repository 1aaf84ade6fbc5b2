"""An engine's figures, for tests of metrics that run no engine."""

from service.engine.engine import EngineStats

STATS = EngineStats(
    num_running=3,
    max_num_seqs=4,
    num_waiting=2,
    num_blocks=8,
    num_free_blocks=6,
    heartbeat_age_s=0.5,
    is_alive=True,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    num_steps=0,
    num_preemptions=0,
    num_prefix_tokens=0,
    num_prefix_hits=0,
)
