"""A model under the path that its clients know, when these cannot be changed: LitServe's /predict, say.

cd examples && uvicorn own_route:app --port 8000
curl http://127.0.0.1:8000/predict -H 'Content-Type: application/json' -d '{"input": 4.0}'
"""

from from_litserve import Engine  # type: ignore[import-not-found]
from starlette.types import Receive, Scope, Send

import octavo

ROUTES = {"/predict": "/v1/models/engine/predict"}

server = octavo.create_app(Engine)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    path = ROUTES.get(scope.get("path", ""))
    await server(scope if path is None else {**scope, "path": path, "raw_path": path.encode()}, receive, send)
