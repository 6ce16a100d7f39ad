"""A model of one's own in ten lines: requests of several clients are computed in one call.

octavo serve examples/sentiment.py
curl http://127.0.0.1:8000/v1/models/sentiment/predict -H 'Content-Type: application/json' -d '{"text": "I love it"}'
"""

from pydantic import BaseModel

import octavo

WORDS = {"love": 2, "great": 2, "good": 1, "fine": 1, "slow": -1, "bad": -1, "awful": -2, "hate": -2}


class Label(BaseModel):
    label: str
    score: float


@octavo.model(max_batch_size=32, instances=2)
class Sentiment:
    def load(self) -> None:  # a real one loads its weights here: transformers.pipeline("text-classification")
        self.weights = WORDS

    def predict(self, text: list[str]) -> list[Label]:
        scores = [sum(self.weights.get(word.strip(".,!?"), 0) for word in each.lower().split()) for each in text]
        return [Label(label="positive" if score >= 0 else "negative", score=score) for score in scores]
