"""litellm, with both of its ways to name such a server: chats, a stream, text completions, and a message sent back.

Run it as `python litellm_chat.py URL MODEL`.
"""

import sys

import litellm


def main(url: str, model: str) -> None:
    asked = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    for provider in ("openai", "hosted_vllm"):
        common = {
            "model": f"{provider}/{model}",
            "api_base": f"{url}/v1",
            "api_key": "none",
            "max_tokens": 8,
            "temperature": 0,
        }
        first = litellm.completion(messages=asked, **common)
        message = first.choices[0].message
        litellm.completion(messages=[*asked, message, {"role": "user", "content": "Say hello."}], **common)
        dumped = [*asked, message.model_dump(), {"role": "user", "content": "Say hello."}]
        litellm.completion(messages=dumped, **common)
        chunks = litellm.completion(messages=asked, stream=True, **common)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == (message.content or ""), (text, message.content)
    written = litellm.text_completion(
        model=f"text-completion-openai/{model}", prompt="Once upon", api_base=f"{url}/v1", api_key="none", max_tokens=4
    )
    print(f"litellm: {first.usage.total_tokens} and {written.usage.total_tokens} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:3])
