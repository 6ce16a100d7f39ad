"""The first examples of BentoML's README and documentation as models of Octavo: texts are summarised.

octavo serve examples/from_bentoml.py
curl http://127.0.0.1:8000/v1/models/summarization/predict --json '{"text": "It rained."}'
curl http://127.0.0.1:8000/v1/models/summarize/predict --json '{"texts": ["It rained."]}'
"""

import asyncio
import re
from collections import Counter

import octavo


def summary(text: str) -> str:
    """The sentence whose words are the most frequent ones of the text."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    counts = Counter(re.findall(r"\w+", text.lower()))

    def weight(sentence: str) -> float:
        words = re.findall(r"\w+", sentence.lower())
        return sum(counts[word] for word in words) / (len(words) or 1)

    return max(sentences, key=weight)


@octavo.model(max_batch_size=32)
class Summarization:
    def load(self) -> None:  # a model that is a network has its weights loaded here, and computes a list at once
        self.summarise = summary

    def predict(self, text: list[str]) -> list[str]:  # texts of several clients
        return [self.summarise(each) for each in text]


@octavo.ensemble
async def summarize(texts: list[str], *, summarization: octavo.Model) -> list[str]:
    """Any number of texts in one request."""
    return await asyncio.gather(*(summarization(text=each) for each in texts))
