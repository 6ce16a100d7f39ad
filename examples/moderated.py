"""A function of models: a language model answers, another model judges that, and what is no good is asked for again.

octavo serve examples/moderated.py examples/sentiment.py smollm2:135m
curl http://127.0.0.1:8000/v1/models/reply/predict --json '{"question": "How was your day?"}'
"""

from pydantic import BaseModel

import octavo

LLM = octavo.Model("smollm2:135m")


class Reply(BaseModel):
    text: str
    mood: str
    tries: int


@octavo.ensemble
async def reply(question: str, tries: int = 3, *, sentiment: octavo.Model, llm: octavo.Model = LLM) -> Reply:
    """An answer that sounds positive, if one of so many tries does."""
    for seed in range(1, tries + 1):
        how = {"max_tokens": 24, "seed": seed}
        said = await llm(text_input=question, exclude_input_in_output=True, sampling_parameters=how)
        judged = await sentiment(text=said["text_output"])
        if judged["label"] == "positive":
            break
    return Reply(text=said["text_output"], mood=judged["label"], tries=seed)
