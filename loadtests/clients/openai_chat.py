"""The openai package: completions, chats, streams, and a message sent back as received.

Run it as `python openai_chat.py URL MODEL`.
"""

import sys

from openai import OpenAI


def main(url: str, model: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"model": model, "max_tokens": 8, "temperature": 0}
    first = client.chat.completions.create(messages=asked, **options)
    answer = first.choices[0].message
    again = [*asked, answer.model_dump(), {"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    second = client.chat.completions.create(messages=again, tools=[], response_format={"type": "text"}, **options)
    stream = client.chat.completions.create(
        messages=again, stream=True, stream_options={"include_usage": True}, **options
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == second.choices[0].message.content, (text, second)
    assert chunks[-1].usage == second.usage
    scored = client.completions.create(model=model, prompt="Once upon", max_tokens=4, echo=True, logprobs=1)
    assert len(scored.choices[0].logprobs.token_logprobs) == scored.usage.total_tokens
    raw = client.chat.completions.with_raw_response.create(messages=asked, logprobs=True, top_logprobs=2, **options)
    assert len(raw.parse().choices[0].logprobs.content) == first.usage.completion_tokens
    print(f"openai: {first.usage.total_tokens} and {second.usage.total_tokens} tokens, streamed alike")


if __name__ == "__main__":
    main(*sys.argv[1:3])
