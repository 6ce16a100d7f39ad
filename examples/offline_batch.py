"""Many prompts at once, without a server: one line of JSON for each, in their order.

python examples/offline_batch.py
"""

import json

from octavo import LLM, SamplingParams

CITIES = ["Paris", "Rome", "Tokyo", "Cairo", "Lima", "Oslo", "Delhi", "Quito"]

# Settings have the names of the flags of `octavo serve`; `in_process=True` would compute without a worker process.
with LLM("smollm2:135m", max_num_seqs=32) as llm:
    conversations = [[{"role": "user", "content": f"In which country is {city}?"}] for city in CITIES]
    params = SamplingParams(temperature=0, max_tokens=24, stop="\n")
    for city, output in zip(CITIES, llm.chat(conversations, params), strict=True):
        print(json.dumps({"city": city, "answer": output.text, "tokens": output.usage.completion_tokens}))
