"""The views of conversations: list, begin, read, rename, delete and export. They are their owner's alone."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from flask import Blueprint, Response, request, url_for

from .conversations import Conversation, Message, branch
from .errors import ConversationNotFound, InvalidInput, RequestRefused, RunExpired, RunNotFound
from .identity import recognize, welcome
from .mounting import mount
from .problems import json_response
from .record import Record
from .requests import json_body
from .schemas import ConversationInput, load

AT_ONCE = 20
AT_ONCE_MOST = 100
"""Conversations of a page."""
NAMES = {"user": "User", "assistant": "Assistant"}
REMARKS = {
    "in_progress": "Still being written.",
    "incomplete": "Incomplete: a limit was reached.",
    "cancelled": "Stopped.",
    "failed": "Broken off by an error.",
}


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the views of conversations."""

    add = partial(mount, blueprint, record)
    one = "/conversations/<conversation_id>"
    add("/conversations", "conversations", "GET", _list)
    add("/conversations", "begin_conversation", "POST", _begin)
    add(one, "conversation", "GET", _read)
    add(one, "rename_conversation", "PATCH", _rename)
    add(one, "delete_conversation", "DELETE", _delete)
    add(f"{one}/export", "export_conversation", "GET", _export)


def _list(record: Record) -> Response:
    visitor = recognize(record)
    limit, before = _limit(), request.args.get("before")
    if visitor is None:
        return json_response({"data": [], "has_more": False})
    found, more = record.conversations.newest(visitor.owner, limit=limit, before=before)
    return json_response({"data": [_describe(record, conversation) for conversation in found], "has_more": more})


def _begin(record: Record) -> Response:
    visitor = recognize(record)
    body = json_body(request, record) if request.content_length or request.content_type else {}
    title = load(ConversationInput(), body).get("title")
    visitor = visitor or welcome()
    said = _describe(record, record.conversations.begin(visitor.owner, title))
    return json_response(said, 201, Location=said["links"]["self"])


def _read(record: Record, conversation_id: str) -> Response:
    conversation, messages, run = record.conversations.read(_owner(record), conversation_id)
    return json_response(_describe(record, conversation) | {"messages": _tree(messages), "run": run})


def _rename(record: Record, conversation_id: str) -> Response:
    owner = _owner(record)
    said = load(ConversationInput(), json_body(request, record))
    if "title" not in said:
        raise InvalidInput("Only the title can be changed.", errors={"title": ["Missing data for required field."]})
    return json_response(_describe(record, record.conversations.rename(owner, conversation_id, said["title"])))


def _delete(record: Record, conversation_id: str) -> Response:
    owner = _owner(record)
    run_id = record.conversations.delete(owner, conversation_id)
    if run_id is not None:
        with suppress(RunNotFound, RunExpired):  # it has ended this moment
            record.registry.stop(record.registry.find(run_id, owner))
    return Response(status=204)


def _export(record: Record, conversation_id: str) -> Response:
    format_ = request.args.get("format", "json")
    if format_ not in ("json", "markdown"):
        raise RequestRefused("format is json or markdown.")
    conversation, messages, _ = record.conversations.read(_owner(record), conversation_id)
    if format_ == "json":
        said = msgspec.to_builtins(conversation) | {"messages": _tree(messages)}
        response = json_response(said)
        name = f"conversation-{conversation_id}.json"
    else:
        response = Response(_markdown(conversation, messages), mimetype="text/markdown")
        response.headers["Cache-Control"] = "no-store"
        name = f"conversation-{conversation_id}.md"
    response.headers.set("Content-Disposition", "attachment", filename=name)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _owner(record: Record) -> str:
    """Whose conversations the visitor may see: their own.

    :raises ConversationNotFound: somebody who has none, as nobody has seen them yet.
    """
    visitor = recognize(record)
    if visitor is None:
        raise ConversationNotFound
    return visitor.owner


def _describe(record: Record, conversation: Conversation) -> dict[str, Any]:
    """A conversation as JSON, without its messages."""

    def link(endpoint: str) -> str:
        return url_for(f"{record.name}.{endpoint}", conversation_id=conversation.id)

    said: dict[str, Any] = msgspec.to_builtins(conversation)
    links = {"self": link("conversation"), "export": link("export_conversation")}
    return said | {"object": "conversation", "links": links}


def _tree(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as JSON. One whose parent is lost begins a branch of its own."""
    there = {message.id for message in messages}
    said = [msgspec.to_builtins(message) for message in messages]
    for message in said:
        if message["parent"] not in there:
            message["parent"] = None
    return said


def _markdown(conversation: Conversation, messages: list[Message]) -> str:
    """The branch that was gone on with last."""
    title = " ".join((conversation.title or "Conversation").split())
    parts = [f"# {title}"]
    for message in branch(messages, conversation.head):
        parts.append(f"## {NAMES.get(message.role, message.role)}")
        if message.content:
            parts.append(message.content.strip("\n"))
        if remark := REMARKS.get(message.status):
            parts.append(f"*{remark}*")
    return "\n\n".join(parts) + "\n"


def _limit() -> int:
    text = request.args.get("limit", str(AT_ONCE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= AT_ONCE_MOST:
        raise RequestRefused(f"limit is a whole number from 1 to {AT_ONCE_MOST}.")
    return int(text)
