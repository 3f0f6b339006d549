"""Reads what a request says: its body, its key, its cursor, and the page that it comes from."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
from flask import Request
from marshmallow import Schema
from werkzeug.exceptions import RequestEntityTooLarge

from .cursor import Cursor
from .errors import (
    ContentTooLarge,
    EventStreamNotAccepted,
    InvalidInput,
    InvalidKey,
    NotJSON,
    OriginRefused,
    QueryTooLong,
    RequestRefused,
)
from .forms import read_form
from .record import Record
from .store import digest
from .uploads import file_fields, without_ids

LONGEST_QUERY = 3500
"""Bytes. gunicorn refuses a request line of more than 4094 with a page of its own."""
REFUSAL = (
    "This page's origin is not allowed. List it in LLMSTREAM_ALLOWED_ORIGINS; behind a proxy, have the proxy pass the "
    "Host header on."
)
BYTES_A_CHARACTER = 6
"""As JSON's escapes have them."""
KEY = re.compile(r"[\x21-\x7e]{22,255}")
"""128 bits take 22 characters in base64. Whoever guesses the first key of an anonymous visitor, and what they asked,
has their identity."""


def json_body(request: Request, record: Record) -> Any:
    """The request's body.

    :raises NotJSON: it is of another type.
    :raises ContentTooLarge: it is longer than any valid input.
    """
    if not request.is_json:
        raise NotJSON("Send the request as JSON, with Content-Type: application/json.")
    most = longest(record)
    host = request.max_content_length
    request.max_content_length = most if host is None else min(most, host)
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise ContentTooLarge(f"The request has more than {request.max_content_length} bytes.") from None
    try:
        return _decode(body)
    except ValueError:
        raise RequestRefused("The request's body is not valid JSON.") from None


def request_input(request: Request, record: Record, schema: Schema) -> Any:
    """The input that a POST carries: JSON, or a form where the schema takes files.

    The files of a form are in `record.uploads` then: whoever does not start a run with them discards them there.

    :raises NotJSON: it is neither.
    :raises OriginRefused: a page that is not of an allowed origin sends a form, for which browsers ask nobody.
    :raises RequestRefused: as `json_body` and `read_form` do.
    """
    if request.mimetype == "multipart/form-data" and file_fields(schema):
        require_own_page(request, record)
        return read_form(request, record.uploads, schema, max_text=longest(record))
    if not request.is_json and file_fields(schema):
        raise NotJSON("Send the request as a form with the file, with Content-Type: multipart/form-data.")
    return json_body(request, record)


def query_input(request: Request) -> Any:
    """The input that a GET carries: ``?message=``, or ``?messages=`` as JSON, and the other fields by name.

    :raises QueryTooLong: a conversation outgrows an address soon; POST has no such limit.
    """
    if len(request.query_string) > LONGEST_QUERY:
        raise QueryTooLong(f"Send conversations of more than {LONGEST_QUERY} bytes by POST.")
    data: dict[str, Any] = {name: value for name, value in request.args.items() if name not in ("key", "after")}
    if "message" in data and "messages" in data:
        raise InvalidInput("Send either message or messages.")
    if "message" in data and "conversation" not in data:
        data["messages"] = [{"role": "user", "content": data.pop("message")}]
    elif "messages" in data:
        try:
            data["messages"] = _decode(data["messages"])
        except ValueError:
            raise InvalidInput("The parameter messages is not valid JSON.") from None
    for name in ("max_tokens", "temperature"):
        if name in data:
            with suppress(ValueError):  # the schema says what is wrong with it
                data[name] = _decode(data[name])
    return data


def idempotency_key(request: Request) -> str | None:
    """The key that the client gave the request; quoted and bare are the same.

    The header is a string of structured field values (RFC 8941) in the IETF's draft, and bare in most clients. An
    EventSource can't send headers: ``?key=`` stands for it.

    :raises InvalidKey: it can be guessed, or is too long.
    """
    key = request.headers.get("Idempotency-Key") or request.args.get("key")
    if not key:
        return None
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not KEY.fullmatch(key):
        raise InvalidKey(
            "An idempotency key has 22 to 255 visible ASCII characters, at least 128 random bits, "
            "such as crypto.randomUUID() makes."
        )
    return key


def fingerprint(feature: str, view_args: dict[str, Any], data: Any) -> str:
    """What makes two requests the same; the same files, sent again, are."""
    return digest(feature, msgspec.json.encode([view_args, without_ids(data)], order="sorted", enc_hook=str).decode())


def cursor(request: Request) -> Cursor | None:
    """The last event that the client has, if it has any.

    :raises InvalidCursor: it is not one of ours.
    """
    text = request.headers.get("Last-Event-ID") or request.args.get("after")
    return Cursor.parse(text) if text else None


def require_event_stream(request: Request) -> None:
    """Let only those GET requests start work that ask for a stream: an image tag or a crawler does not.

    :raises EventStreamNotAccepted: it is none.
    """
    if "text/event-stream" not in {value.lower() for value, quality in request.accept_mimetypes if quality > 0}:
        raise EventStreamNotAccepted("Send Accept: text/event-stream, as EventSource does; or use POST.")


def require_known_origin(request: Request, record: Record) -> None:
    """Refuse pages of other origins than the application's own and those that are allowed.

    :raises OriginRefused: it is such a page. CORS, which this does not replace, tells a browser the same.
    """
    origin = request.headers.get("Origin", "").lower()
    if not origin or _is_allowed(origin, record) or request.headers.get("Sec-Fetch-Site") == "same-origin":
        return
    if urlsplit(origin).netloc != request.host.lower():
        raise OriginRefused(REFUSAL)


def require_own_origin(request: Request, record: Record) -> None:
    """As `require_known_origin`, for a WebSocket, which no CORS guards: a page of any origin may open one with its
    visitor's cookies, and reads what comes. So ``*`` allows none here.

    :raises OriginRefused: it is not a page of this application, nor of an origin that is listed.
    """
    require_known_origin(request, record)
    origin = request.headers.get("Origin", "").lower()
    listed = origin in record.settings.allowed_origins
    if origin and not listed and urlsplit(origin).netloc != request.host.lower():
        raise OriginRefused(f"{REFUSAL} For WebSockets, * allows none.")


def require_own_page(request: Request, record: Record) -> None:
    """As `require_known_origin`, for a GET that starts work, with which browsers need not send an origin.

    :raises OriginRefused: it is not a page of this application, nor of an allowed origin.
    """
    require_known_origin(request, record)
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if site != "same-origin" and not _is_allowed(request.headers.get("Origin", "").lower(), record):
        raise OriginRefused(REFUSAL)


def _is_allowed(origin: str, record: Record) -> bool:
    allowed = record.settings.allowed_origins
    return bool(origin) and (origin in allowed or "*" in allowed)


def longest(record: Record) -> int:
    """Bytes of the longest valid input, without its files."""
    return record.settings.max_input * BYTES_A_CHARACTER + 65536


def _decode(text: str | bytes) -> Any:
    """JSON.

    :raises ValueError: it is not, or is nested deeper than anybody means it.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
