"""Asynchronous code, whose event loop goes on between requests."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.ticks = 0
        self.ticker = None

    async def tick(self):
        while True:
            self.ticks += 1
            await asyncio.sleep(0.001)

    async def execute(self, requests):
        x = requests[0].inputs()[0].as_numpy()
        if x[0, 0] < 0:
            raise ValueError("negative")
        y = np.full_like(x, self.ticks > 0)
        self.ticker = self.ticker or asyncio.create_task(self.tick())
        await asyncio.sleep(0.02)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]
