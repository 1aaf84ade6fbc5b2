"""`topk examples`: the texts that show best what the presets do, written by the engine that serves them.

Every preset continues every prompt with every seed. What is kept is chosen by measurement alone: the preset's words
come in most texts, and here in the steered one and not in the default one, at a low cost; each example is of another
neuron. Since the engine of `topk serve` writes the texts, the same request to it gives the same texts. Knows no
transport.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from service.observability.metrics import Metrics
from service.requests.schema import CompletionRequest
from service.serving.loading import load
from service.serving.model import ServedModel
from service.settings import Settings
from topk_model.model_folder import output_beside, weights_digest
from topk_model.steering.examples import SteeringExample, write_examples
from topk_model.steering.options import ExamplesConfig
from topk_model.steering.presets import Preset, words_in

MODEL_ID = "model"
#: A preset has examples if its words come in at least this share more of the steered texts than of the default ones: an
#: example is to show what usually happens.
MIN_LIFT = 0.5
#: One word may be chance; more different words than the second make no example better.
MIN_WORDS, ENOUGH_WORDS = 2, 3
#: A text that says a run of this many words twice stammers.
RUN = 3
#: Requests that the engine has at once.
CONCURRENCY = 8


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written after a prompt, and how unlikely that is under the plain model."""

    text: str
    loss: float  # nats per token


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A prompt, continued without and with a preset."""

    preset: Preset
    prompt: str
    seed: int
    plain: Written
    steered: Written

    @property
    def words(self) -> tuple[str, ...]:
        """The preset's words that stand in the steered text, each once."""
        return words_in(self.steered.text, self.preset.words)

    @property
    def plain_words(self) -> tuple[str, ...]:
        return words_in(self.plain.text, self.preset.words)

    @property
    def cost(self) -> float:
        """Nats per token by which the plain model finds the steered text less likely than the default one."""
        return self.steered.loss - self.plain.loss


def find_examples(config: ExamplesConfig) -> None:
    """Write `examples.json` into `output` or the model's folder.

    Raises:
        FileNotFoundError: the model is missing.
        ValueError: it has no presets, or as `service.serving.loading.load` and `output_beside`.
    """
    output = output_beside(config.model, config.output)
    settings = Settings(model=config.model, model_id=MODEL_ID, models={}, num_threads=config.threads)
    # Without the examples that it may have: they may be of other weights, and are made anew.
    loaded = load(settings, model_id=MODEL_ID, folder=config.model, has_examples=False)
    presets = loaded.facts.presets
    if not presets:
        raise ValueError(f"{config.model} has no presets; make them with: topk presets --model {config.model}")
    served = ServedModel(loaded, settings, Metrics().of(MODEL_ID))
    trials = asyncio.run(all_trials(served, presets, config))
    found = [example for of_preset in trials for example in candidates(of_preset, config)]
    examples = chosen(found, config.count)
    output.mkdir(parents=True, exist_ok=True)
    write_examples(output, weights_digest(config.model), examples)
    for example in examples:
        print(f"{example.name}: {', '.join(example.words)}; {example.cost:.2f} nats per token")
    print(f"{len(examples)} examples, of {len(found)} that would do, in {output}")


async def all_trials(served: ServedModel, presets: Sequence[Preset], config: ExamplesConfig) -> list[list["Trial"]]:
    """The trials of each preset: every prompt with every seed."""
    await served.start()
    try:
        plain = {seed: await write(served, config, seed, None) for seed in config.seeds}
        room = asyncio.Semaphore(CONCURRENCY)

        async def of_preset(preset: Preset) -> list[Trial]:
            trials = []
            for seed in config.seeds:
                async with room:
                    steered = await write(served, config, seed, preset)
                for prompt, before, after in zip(config.prompts, plain[seed], steered, strict=True):
                    trials.append(Trial(preset=preset, prompt=prompt, seed=seed, plain=before, steered=after))
            bar.update()
            return trials

        with tqdm(total=len(presets), desc="writing", unit="preset") as bar:
            return await asyncio.gather(*map(of_preset, presets))
    finally:
        await served.stop()


async def write(served: ServedModel, config: ExamplesConfig, seed: int, preset: Preset | None) -> list[Written]:
    """The continuation of each prompt.

    The losses are those of the same tokens in a second request, which reads them without the edit.
    """
    fields = {"model": MODEL_ID, "prompt": list(config.prompts), "max_tokens": config.max_tokens, "seed": seed}
    if preset is not None:
        fields["interventions"] = [edit_of(preset)]
    # With log-probabilities, the answer has its tokens, too.
    request = CompletionRequest.model_validate(fields | {"temperature": config.temperature, "logprobs": 0})
    answer = await served.answer(request, f"write-{seed}")
    texts = [fragment for _, fragment in answer.fragments()]
    prompts = [row.request.prompt_ids for row in answer.plan.rows]
    whole = [
        [*ids, *(token.token_id for token in fragment.tokens)] for ids, fragment in zip(prompts, texts, strict=True)
    ]
    read = {"model": MODEL_ID, "prompt": whole, "max_tokens": 0, "echo": True, "logprobs": 0}
    reading = await served.answer(CompletionRequest.model_validate(read), f"read-{seed}")
    losses = []
    for ids, written, (_, fragment) in zip(prompts, texts, reading.fragments(), strict=True):
        known = [token.logprobs.logprob for token in fragment.tokens[len(ids) :] if token.logprobs is not None]
        assert len(known) == len(written.tokens)
        losses.append(-sum(known) / max(1, len(known)))
    return [Written(text=fragment.text, loss=loss) for fragment, loss in zip(texts, losses, strict=True)]


def edit_of(preset: Preset) -> dict[str, object]:
    """The edit of an example's request."""
    return {
        "layer": preset.layer,
        "neuron": preset.neuron,
        "op": "add",
        "value": preset.value,
        "positions": "continuation",
    }


def candidates(trials: Sequence[Trial], config: ExamplesConfig) -> list[tuple[float, SteeringExample]]:
    """Of a preset whose words come, the trials that show it, each with the mean loss of its two texts."""
    lift = sum(bool(trial.words) - bool(trial.plain_words) for trial in trials) / len(trials)
    if lift < MIN_LIFT:
        return []
    found = []
    for trial in trials:
        texts = trial.plain, trial.steered
        if len(trial.words) < MIN_WORDS or trial.plain_words or trial.cost > config.max_cost:
            continue
        if any(stammers(one.text) for one in texts):
            continue
        example = SteeringExample(
            name=trial.preset.name,
            prompt=trial.prompt,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=trial.seed,
            layer=trial.preset.layer,
            neuron=trial.preset.neuron,
            value=trial.preset.value,
            words=trial.words,
            default=trial.plain.text,
            steered=trial.steered.text,
            cost=round(trial.cost, 4),
        )
        found.append((sum(one.loss for one in texts) / 2, example))
    return found


def stammers(text: str) -> bool:
    words = re.findall(r"\w+", text.lower())
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return len(set(runs)) < len(runs)


def chosen(found: Sequence[tuple[float, SteeringExample]], count: int) -> list[SteeringExample]:
    """At most `count` examples, the best first, each of another neuron.

    The better of two has more different words, up to `ENOUGH_WORDS`, or else the prompt that fewer have been chosen of,
    or else the likelier texts. A neuron is its index: in several layers it is often the same.

    Args:
        found: examples with the mean loss of their texts.
    """
    rest, uses = list(found), Counter[str]()
    best: list[SteeringExample] = []
    while rest and len(best) < count:
        _, one = min(rest, key=lambda each: (-min(len(each[1].words), ENOUGH_WORDS), uses[each[1].prompt], each[0]))
        best.append(one)
        uses[one.prompt] += 1
        rest = [(loss, other) for loss, other in rest if other.neuron != one.neuron and other.name != one.name]
    return best
