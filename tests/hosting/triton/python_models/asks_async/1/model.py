"""Asks another model several times at once."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


def request(value):
    tensor = pb_utils.Tensor("x", np.full((1, 1), value, np.float32))
    return pb_utils.InferenceRequest(model_name="everything", inputs=[tensor], requested_output_names=["y"])


class TritonPythonModel:
    async def execute(self, requests):
        return [await self.answer(each) for each in requests]

    async def answer(self, asked):
        n = int(asked.inputs()[0].as_numpy()[0])
        responses = await asyncio.gather(*(request(each).async_exec() for each in range(n)))
        # In a loop of its own, too, while nothing else goes on in this one.
        responses.append(await asyncio.to_thread(asyncio.run, self.one_more(n)))
        streams = pb_utils.InferenceRequest(
            model_name="streams",
            inputs=[pb_utils.Tensor("act", np.array([b"later 3"], object))],
            requested_output_names=[],
        )
        more = [each for each in await streams.async_exec(decoupled=True) if each.output_tensors()]
        total = sum(float(each.output_tensors()[0].as_numpy().sum()) for each in [*responses, *more])
        return pb_utils.InferenceResponse([pb_utils.Tensor("sum", np.array([total], np.float32))])

    async def one_more(self, n):
        return await request(n).async_exec()
