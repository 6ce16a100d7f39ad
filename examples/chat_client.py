"""A conversation with a server, through OpenAI's SDK.

source .venv/bin/activate
octavo serve smollm2:135m &
pip install openai
python examples/chat_client.py
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="EMPTY")
model = client.models.list().data[0].id

messages = []
for question in ("What is the capital of France?", "And which river flows through it?"):
    print(f"> {question}")
    messages.append({"role": "user", "content": question})
    answer = ""
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=64, temperature=0, stream=True)
    for chunk in stream:
        piece = chunk.choices[0].delta.content or ""
        print(piece, end="", flush=True)
        answer += piece
    print()
    messages.append({"role": "assistant", "content": answer})
