"""The options of `topk data` and `topk train`, and the schedules of learning rate and k. Does not need torch."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from topk_model.options import Device
from topk_model.traces import MAX_UINT16_WIDTH
from topk_model.training.books import COLLECTION


class DataConfig(BaseModel):
    """Make a training set: clean the books, or use other texts; train the tokenizer; tokenize."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: Path | None = Field(
        None,
        description="your own texts instead of the books: a folder, or a file that ends in .txt, .md, .jsonl or "
        ".parquet; each file, line or row is a document",
    )
    licence: str | None = Field(None, min_length=1, description="with texts: their licence, for the model card")
    text_field: str = Field("text", min_length=1, description="with texts: field or column that contains the text")
    source: Path | None = Field(
        None,
        description=f"a clone of {COLLECTION}, or a local copy as JSON lines (.jsonl or .jsonl.xz) with the fields "
        "author, title and text",
    )
    output: Path = Field(Path("data/books"), description="folder to write")
    vocab_size: int = Field(
        8192, ge=300, le=MAX_UINT16_WIDTH, description="number of tokens, including the 256 bytes and 3 special tokens"
    )
    tokenizer: Path | None = Field(
        None, description="folder of a model whose tokenizer to use, as --init-from needs (default: train one)"
    )
    min_reading_ease: float = Field(
        76.0, description="minimum Flesch reading ease of books; 100 is very easy, 50 is hard"
    )
    topic_passes: int = Field(
        2,
        ge=0,
        description="number of times to add the paragraphs of all books about an everyday topic, topic by topic",
    )
    stories: Path | None = Field(
        None,
        description="short stories as JSON lines (.jsonl or .jsonl.xz) with the fields set and text, to be read first",
    )
    min_common_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="minimum share of a book's words that are among the 3,000 commonest of the first set of stories",
    )

    @model_validator(mode="after")
    def check_task(self) -> Self:
        if (self.texts is None) == (self.source is None):
            raise ValueError("either --source or --texts is required, but not both")
        if self.texts is not None and self.licence is None:
            raise ValueError("--licence is required with --texts: the licence of the texts, such as CC-BY-4.0")
        of_books = {"stories", "min_reading_ease", "min_common_share", "topic_passes"}
        of_texts = {"licence", "text_field"}
        if wrong := self.model_fields_set & (of_texts if self.texts is None else of_books):
            option, other = min(wrong).replace("_", "-"), "--source" if self.texts is None else "--texts"
            raise ValueError(f"--{option} cannot be used with {other}")
        return self


class TrainConfig(BaseModel):
    """Train a TopK LM on a data folder; run it again with the same --run to continue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(Path("data/books"), description="folder made by `topk data`")
    run: Path = Field(Path("runs/default"), description="folder of the run; an unfinished run there is continued")
    init_from: Path | None = Field(
        None,
        description="a Llama or TopK checkpoint to take the shape and the first weights from (default: random weights)",
    )

    hidden_size: int = Field(384, ge=8, description="width of the residual stream: the number of neurons per layer")
    num_layers: int = Field(6, ge=1, description="number of blocks, including the dense ones")
    num_heads: int = Field(6, ge=1, description="query heads")
    num_kv_heads: int = Field(2, ge=1, description="key-value heads; num_heads must be a multiple of this")
    head_dim: int | None = Field(
        None, ge=2, description="width of an attention head (default: hidden_size / num_heads)"
    )
    intermediate_size: int = Field(512, ge=8, description="width of the MLP")
    context: int = Field(
        512,
        ge=8,
        description="tokens of a training window, and the context length of a model that starts from random weights",
    )
    topk_k: int = Field(32, ge=1, description="entries of the residual stream kept after each TopK layer")
    n_nontopk: int = Field(
        2, ge=0, description="number of final layers kept dense; equal to num_layers: the dense twin"
    )
    topk_select: Literal["signed", "abs"] = Field(
        "signed", description="keep the largest values or the largest magnitudes"
    )

    steps: int = Field(6500, ge=1, description="total number of optimiser steps")
    batch_size: int = Field(2, ge=1, description="windows per forward pass in each process")
    accumulate: int = Field(1, ge=1, description="forward passes per optimiser step")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="for the matrices of the blocks; AdamW for the rest"
    )
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW")
    muon_learning_rate: float = Field(3e-3, gt=0, description="of Muon")
    min_lr_share: float = Field(0.03, ge=0, le=1, description="fraction of the learning rate at the last step")
    warmup_steps: int | None = Field(
        None, ge=0, description="steps over which the learning rate rises (default: 100, or a tenth of fewer than 1000)"
    )
    decay_share: float = Field(0.4, ge=0, le=1, description="fraction of the steps over which the learning rate falls")
    tailr_gamma: float = Field(
        0.0,
        ge=0,
        le=1,
        description="in the last steps, tokens that the model finds much less likely than this count little (the TaiLr "
        "objective, arXiv 2302.13344), so that what it writes is plainer; 0: all tokens count alike",
    )
    tailr_share: float = Field(0.15, ge=0, le=1, description="fraction of the steps in which tailr_gamma applies")
    anneal_steps: int | None = Field(
        None, ge=0, description="steps over which k falls from dense to topk_k (default: 1500, a quarter of few steps)"
    )
    weight_decay: float = Field(0.1, ge=0, description="weight decay of matrices, in units of the learning rate")
    clip_norm: float = Field(1.0, gt=0, description="maximum norm of the complete gradient")
    skip_bad_steps: int = Field(
        0,
        ge=0,
        description="maximum number of consecutive steps with a gradient that is not finite; their windows are skipped",
    )

    seed: int = Field(0, ge=0, lt=2**63, description="seed of the initial weights and of the order of the windows")
    device: Device = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="type of the products; bfloat16 is torch's autocast, about twice as fast on a CPU with "
        "AVX512-BF16 or AMX and many times slower on one without; auto: bfloat16 on a GPU, float32 on a CPU",
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: one fewer than the cores")
    save_seconds: float = Field(300.0, gt=0, description="seconds between two saves of the training state")
    evaluate_every: int = Field(250, ge=1, description="steps between two evaluations")
    validation_windows: int = Field(48, ge=1, description="windows per evaluation")


def num_warmup_steps(config: TrainConfig) -> int:
    return min(100, config.steps // 10) if config.warmup_steps is None else config.warmup_steps


def num_anneal_steps(config: TrainConfig) -> int:
    return min(1500, config.steps // 4) if config.anneal_steps is None else config.anneal_steps


def lr_share(config: TrainConfig, step: int) -> float:
    """The learning rate's factor: linear warm-up, constant, then linear to `min_lr_share` in the last `decay_share`."""
    decay_steps = config.decay_share * config.steps
    left = min(1.0, (config.steps - step) / decay_steps) if decay_steps else 1.0
    warm = min(1.0, (step + 1) / max(1, num_warmup_steps(config)))
    return warm * max(config.min_lr_share, left)


def token_gamma(config: TrainConfig, step: int) -> float:
    """TaiLr's gamma at `step`: `tailr_gamma` in the last `tailr_share` of the steps, 0 before."""
    return config.tailr_gamma if step >= config.steps * (1 - config.tailr_share) else 0.0


def annealed_k(config: TrainConfig, step: int) -> int:
    """k at `step`: from hidden_size to topk_k, the excess falling as (1 - t)^2; hidden_size in a dense twin."""
    if config.n_nontopk == config.num_layers:
        return config.hidden_size
    anneal_steps = num_anneal_steps(config)
    if step >= anneal_steps:
        return config.topk_k
    excess = (config.hidden_size - config.topk_k) * (1 - step / anneal_steps) ** 2
    return config.topk_k + round(excess)
