"""The models as tutorials wrap them with FastAPI."""

import os
import time
from threading import Lock

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
busy = Lock()


class Text(BaseModel):
    text: str


class Number(BaseModel):
    x: float


class Row(BaseModel):
    x: list[float]


@app.post("/upper")
def upper(body: Text) -> dict[str, str]:
    return {"output": body.text.upper()}


@app.post("/sleeper_alone")
def sleeper(body: Number) -> dict[str, int]:
    with busy:  # one model, which computes one request at a time
        time.sleep(0.010)
    return {"output": 1}


if "MLP" in os.environ:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.environ["MLP"])

    @app.post("/mlp_alone")
    def mlp(body: Row) -> dict[str, list[float]]:
        (output,) = session.run(None, {"x": np.array([body.x], np.float32)})
        return {"output": output[0].tolist()}
