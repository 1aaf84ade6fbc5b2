"""Options that are left open, and what may change when a run is continued."""

from topk_model.checkpoints import checkpoint_folder, read_config
from topk_model.training.options import TrainConfig, annealed_k, num_anneal_steps, num_warmup_steps

#: Options that a checkpoint determines for a run that starts from it: our name and the configuration's.
SHAPE = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
}
#: Options that may change when a run is continued; the number of windows per step is checked separately.
FREE = {
    "run", "steps", "learning_rate", "muon_learning_rate", "min_lr_share", "warmup_steps", "decay_share", "tailr_gamma",
    "tailr_share", "clip_norm", "skip_bad_steps", "topk_k", "anneal_steps", "batch_size", "accumulate", "device",
    "precision", "threads", "save_seconds", "evaluate_every", "validation_windows",
}  # fmt: skip


def settle(config: TrainConfig) -> TrainConfig:
    """`config`, with the options that it leaves open taken from the start of its run or from the shape of `init_from`,
    and its schedules in numbers, so that they stay the same if the run is extended.

    Raises:
        FileNotFoundError: `init_from` is not a checkpoint.
        ValueError: an option contradicts the continued run or the checkpoint that it starts from; k would not
            have reached topk_k at the last step; or `run.json` is damaged.
    """
    config = of_init(of_run(config))
    settled = {"warmup_steps": num_warmup_steps(config), "anneal_steps": num_anneal_steps(config)}
    config = config.model_copy(update=settled)
    if settled["anneal_steps"] > config.steps and config.n_nontopk != config.num_layers:
        raise ValueError(
            f"anneal_steps is {settled['anneal_steps']}, above steps ({config.steps}): the run would end with k "
            f"{annealed_k(config, config.steps)}, not topk_k ({config.topk_k}); set it to at most {config.steps}"
        )
    return config


def of_run(config: TrainConfig) -> TrainConfig:
    """`config` with the options that its run was started with. A run that has saved nothing yet may change them."""
    path = config.run / "run.json"
    if not path.exists():
        return config
    given = {name: getattr(config, name) for name in config.model_fields_set}
    try:
        started = TrainConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, so {config.run} cannot be continued: {error}") from None
    if not (config.run / "state.pt").exists():
        given_by_init = SHAPE.keys() if "init_from" in given else set()
        kept = started.model_dump(include=started.model_fields_set - given.keys() - given_by_init)
        return config.model_copy(update=kept)
    for name in given.keys() - FREE:
        if (before := getattr(started, name)) != given[name]:
            raise ValueError(f"{config.run} was started with {name}={before!r}, not {given[name]!r}")
    return started.model_copy(update=given)


def of_init(config: TrainConfig) -> TrainConfig:
    """`config` with the shape of `init_from`."""
    if config.init_from is None or (config.run / "state.pt").exists():
        return config
    shape = read_config(checkpoint_folder(config.init_from))
    found = {name: getattr(shape, theirs) for name, theirs in SHAPE.items()}
    for name in config.model_fields_set & found.keys():
        if getattr(config, name) != found[name]:
            raise ValueError(
                f"{name} is {getattr(config, name)}, but {config.init_from} has {found[name]}; leave it out"
            )
    if config.context > shape.max_position_embeddings:
        raise ValueError(f"context is {config.context}, must be at most init_from's ({shape.max_position_embeddings})")
    return config.model_copy(update=found)
