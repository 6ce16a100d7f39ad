"""A model inside one's own FastAPI application: OpenAI's API under /ai, and a route of one's own that uses it.

uvicorn --app-dir examples mounted:app
curl http://127.0.0.1:8000/ai/v1/models
curl 'http://127.0.0.1:8000/haiku?about=paper'
"""

import httpx
from fastapi import FastAPI

import octavo

ai = octavo.create_app("smollm2:135m", max_num_seqs=16)

# Starlette does not run the lifespan of what is mounted. With this one the model is loaded before the first request is
# taken; without it at the first request.
app = FastAPI(lifespan=ai.lifespan)
app.mount("/ai", ai)


@app.get("/haiku")
async def haiku(about: str) -> dict[str, str]:
    """A poem, by way of the API that is mounted here."""
    body = {"messages": [{"role": "user", "content": f"Write a haiku about {about}."}], "max_tokens": 48}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mounted") as client:
        reply = await client.post("/ai/v1/chat/completions", json=body, timeout=60)
    return {"about": about, "haiku": reply.raise_for_status().json()["choices"][0]["message"]["content"]}
