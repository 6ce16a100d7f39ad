"""Tensors as nested JSON: KServe's and TensorFlow Serving's `:predict`, and `/predict` of models that take tensors."""

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.errors import Code, InferenceError
from octavo.server.errors import invalid
from octavo.server.inference.bodies import predict_body
from octavo.server.inference.body import read_body
from octavo.server.inference.http import Call
from octavo.server.inference.infer import STREAMS
from octavo.server.inference.items import BodyModel, ItemModel, TensorModel
from octavo.server.inference.nested import dump
from octavo.server.inference.tensor_json import read_json
from octavo.server.inference.work import allowed_options, begin, presence
from octavo.server.offload import off_loop

MAX_INSTANCES = 4096
"""Of one request; each may be a request of its own to the model."""


async def predict(call: Call) -> None:
    """Compute one item: `{"input": nested list}` to `{"output": nested list}`, or what the model's own code takes."""
    if not isinstance(call.server.any_named(call.name), HostedDeployment):
        message = (
            f"The model '{call.name}' is a language model; /v1/chat/completions and /v1/completions take its requests."
        )
        raise invalid(message, "model")
    deployment, info = begin(call)
    if info.body is not None:
        await predict_body(call, deployment, info)
        return
    model = TensorModel(deployment.client, info, allowed_options(call, None).priority)
    body = await read_json(call.server, await read_body(call))
    with presence(call):
        outputs = await model.item(body)
    await call.reply((await off_loop(dump, outputs),))


async def predict_v1(call: Call) -> None:
    """Compute `{"instances": [item, …]}` to `{"predictions": […]}`, or `{"inputs": …}`, which has the items of each
    input together, to `{"outputs": …}`, as KServe and TensorFlow Serving do."""
    model = _model(call)
    body = await read_json(call.server, await read_body(call))
    instances, columns = body.get("instances"), body.get("inputs")
    if (instances is None) == (columns is None):
        raise invalid('Expected either "instances" or "inputs" in the request body', "instances")
    with presence(call):
        if instances is None:
            answer = {"outputs": await model.columns(columns)}
        elif isinstance(instances, list) and 1 <= len(instances) <= MAX_INSTANCES:
            answer = {"predictions": await model.instances(instances)}
        else:
            raise invalid(f'Expected "instances" to be a list of 1 to {MAX_INSTANCES} items', "instances")
    await call.reply((await off_loop(dump, answer),))


def _model(call: Call) -> ItemModel:
    deployment, info = begin(call)
    if info.streams:
        raise InferenceError(STREAMS.format(info.name), Code.UNSUPPORTED)
    priority = allowed_options(call, None).priority
    return (TensorModel if info.body is None else BodyModel)(deployment.client, info, priority)
