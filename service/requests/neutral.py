"""Fields of other services' APIs that this one does not support: accepted with the values that change nothing, and
rejected with any other value by a message that says so. Null is always accepted.

Some clients send these with every request, whatever their user wants. Knows no model and no transport.
"""

from collections.abc import Mapping
from typing import Any

from service.errors import fault, shown

Neutral = Mapping[str, tuple[Any, ...]]

#: Those of OpenAI's API, then those of vLLM's, SGLang's, TGI's and llama.cpp's, which extend it.
GENERATION: Neutral = {
    "metadata": ({},),
    "moderation": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_prompt": (False, True),
    "cache_salt": (),
    "detokenize": (True,),
    "dry_multiplier": (0,),
    "early_stopping": (False,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "priority": (0,),
    "prompt_logprobs": (),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (False, True),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "tfs_z": (1,),
    "truncate_prompt_tokens": (),
    "top_a": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "xtc_probability": (0,),
    # Those of either route, which clients send to both.
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "include_reasoning": (False, True),
    "mm_processor_kwargs": ({},),
    "prompt_embeds": (),
    "separate_reasoning": (False, True),
    "suffix": ("",),
    "thinking": ({"type": "disabled"},),
}
COMPLETION: Neutral = {**GENERATION, "add_special_tokens": (True,), "messages": (), "top_logprobs": (0,)}
CHAT: Neutral = {**GENERATION, "add_special_tokens": (False,), "best_of": (1,), "echo": (False,), "prompt": ()}
#: Those of a message, which clients send back as they received it.
MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "images": ([],),
    "provider_specific_fields": ({},),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": (),
    "thinking_blocks": ([],),
    "tool_call_id": (),
    "tool_calls": ([],),
}
STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,)}


def without_neutral(data: object, neutral: Neutral) -> object:
    """`data` without the fields that change nothing.

    Raises:
        PydanticCustomError: one of those fields has a value that would change something.
    """
    if not isinstance(data, dict):
        return data
    for name in data.keys() & neutral.keys():
        if not is_neutral(data[name], neutral[name]):
            allowed = " or ".join(map(said, (None, *neutral[name])))
            raise fault(f"is not supported by this service and must be left out or {allowed}", data[name], name)
    return {name: value for name, value in data.items() if name not in neutral}


def is_neutral(value: object, values: tuple[Any, ...]) -> bool:
    """Whether `value` is null or one of `values`, whatever nulls it holds; true does not count as 1."""
    if isinstance(value, dict):
        value = {name: one for name, one in value.items() if one is not None}
    return value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def said(value: object) -> str:
    """A neutral value in an error message."""
    if isinstance(value, list | dict):
        return str(value).replace("'", '"')
    return f'"{value}"' if isinstance(value, str) else shown(value)


def describe(neutral: Neutral, schema: dict[str, Any]) -> None:
    """Add the fields to a request model's JSON Schema."""
    for name, values in neutral.items():
        described = {"enum": [None, *values], "description": "not supported: only values that change nothing"}
        schema["properties"].setdefault(name, described)
