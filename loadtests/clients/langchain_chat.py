"""langchain-openai: a chat whose answer is sent back, a stream, and plain completions.

Run it as `python langchain_chat.py URL MODEL`.
"""

import sys

from langchain_openai import ChatOpenAI, OpenAI


def main(url: str, model: str) -> None:
    common = {"base_url": f"{url}/v1", "api_key": "none", "model": model, "max_tokens": 8, "temperature": 0}
    chat = ChatOpenAI(**common, stream_usage=True)
    asked = [("system", "You are helpful."), ("human", "What is the capital of France?")]
    first = chat.invoke(asked)
    second = chat.invoke([*asked, first, ("human", "Say hello.")], stop=["one", "two", "three", "four", "five"])
    streamed = "".join(str(chunk.content) for chunk in chat.stream(asked))
    assert streamed == first.content, (streamed, first.content)
    named = ChatOpenAI(**common, n=2, seed=1, logprobs=True, top_logprobs=2).invoke(asked)
    assert named.response_metadata["logprobs"]["content"]
    batch = OpenAI(**common).batch(["Once upon", "The model"])
    assert len(batch) == 2
    print(f"langchain-openai: {first.usage_metadata} and {second.usage_metadata}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
