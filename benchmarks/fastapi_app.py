"""The usual way: what the tutorials and the documentation of FastAPI, openai and sse-starlette lead to."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

app = FastAPI()
client = AsyncOpenAI()


class Message(BaseModel):
    role: str
    content: str


class Chat(BaseModel):
    messages: list[Message]


@app.post("/api/chat/stream")
async def chat(chat: Chat) -> EventSourceResponse:
    return EventSourceResponse(answer(chat))


async def answer(chat: Chat) -> AsyncIterator[dict[str, str]]:
    messages: list[ChatCompletionMessageParam] = [message.model_dump() for message in chat.messages]  # type: ignore[misc]
    stream = await client.chat.completions.create(
        model=os.environ.get("OPENAI_MODEL", "benchmark"), messages=messages, stream=True
    )
    tokens = 0
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            tokens += 1
            yield {"data": json.dumps({"token": chunk.choices[0].delta.content})}
    yield {"data": json.dumps({"done": True, "tokens": tokens})}
