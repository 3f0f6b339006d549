"""The views of batches: up to 10,000 inputs for one feature, done in their own time."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from flask import Blueprint, Response, request, url_for
from marshmallow import Schema, fields, validate

from .anyrun import AnyRun
from .batch import MOST_INPUTS, NAME, Batch, kept
from .errors import ContentTooLarge, InvalidInput, NotJSON, RequestRefused, RunNotFound, StoreUnavailable
from .features import Feature, JobFeature, ReplyFeature, View
from .identity import accessible_run, recognize, welcome
from .mounting import mount
from .order import NOBODY, Order
from .problems import json_response
from .quotas import rate_limits
from .record import Record
from .requests import fingerprint, idempotency_key, longest
from .schemas import load
from .starts import Start, claim, request_context
from .status import POLL_AGAIN, cancelled, status
from .uploads import file_fields

MEDIA_TYPE = "application/x-ndjson"
OTHER_NAMES = ("application/ndjson", "application/jsonl")
MOST_BYTES = 67_108_864
"""Bytes of all inputs."""
MOST_BYTES_AS_ARRAY = 16_777_216
"""The same, where they are one JSON document, which has to be in memory as a whole."""
WRITTEN = 262_144
"""Bytes of inputs that are kept at a time."""
MOST_RESULTS = 1000
MOST_RESULT_BYTES = 4_194_304
"""Bytes of results after which an answer ends."""
READ = 50
"""Results that are read at a time."""


class Rate(Schema):
    """So many a minute."""

    requests = fields.Integer(strict=True, validate=validate.Range(min=1))
    tokens = fields.Integer(strict=True, validate=validate.Range(min=1))


class BatchInput(Schema):
    """What a client asks for; the inputs are checked one by one, when their turn comes."""

    feature = fields.String(required=True)
    inputs = fields.List(fields.Raw(allow_none=True), required=True)
    rate = fields.Nested(Rate)
    concurrency = fields.Integer(strict=True, validate=validate.Range(min=1, max=1000))


class BatchQuery(Schema):
    """The same in an address, where the body has nothing but inputs."""

    feature = fields.String(required=True)
    requests = fields.Integer(validate=validate.Range(min=1))
    tokens = fields.Integer(validate=validate.Range(min=1))
    concurrency = fields.Integer(validate=validate.Range(min=1, max=1000))


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the views of batches."""

    add = partial(mount, blueprint, record)
    add("/batches", "start_batch", "POST", _start)
    add("/batches", "batches", "GET", _list)
    add("/batches/<run_id>", "batch", "GET", _status)
    add("/batches/<run_id>", "forget_batch", "DELETE", _forget)
    add("/batches/<run_id>/results", "batch_results", "GET", _results)
    add("/batches/<run_id>/cancel", "cancel_batch", "POST", _cancel)


def describe(record: Record, run: AnyRun) -> dict[str, Any]:
    """A batch as JSON."""
    order = run.about.data
    counts = kept(record, run).counts()
    return {
        "id": run.id,
        "object": "batch",
        "feature": order["feature"],
        "status": run.state,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at if run.ended else None,
        "request_counts": {"total": order["total"], "completed": counts.completed, "failed": counts.failed},
        "usage": {"prompt_tokens": counts.prompt, "completion_tokens": counts.completion},
        "error": run.ending.get("problem"),
        "links": {
            name: url_for(f"{record.name}.{endpoint}", run_id=run.id)
            for name, endpoint in (("self", "batch"), ("results", "batch_results"), ("cancel", "cancel_batch"))
        },
    }


def _start(record: Record) -> Any:
    recognize(record)  # whoever is not let in need not send it all
    asked, lines = _asked(longest(record))
    feature = _feature(record, asked["feature"])

    def start() -> Response:
        return _carry_out(record, asked, lines)

    # What guards the feature's own view guards it here.
    start.__name__, start.__module__ = feature.name, feature.function.__module__
    view: View = start
    for decorator in reversed(feature.decorators):
        view = decorator(view)
    return view()


def _carry_out(record: Record, asked: dict[str, Any], lines: Iterable[bytes]) -> Response:
    visitor = recognize(record)
    key = idempotency_key(request)
    batch = Batch(record.store, inputs_id := secrets.token_urlsafe(16), record.settings.job_retention)
    try:
        total, digest = _keep(batch, lines)
        wanted = fingerprint(NAME, asked, digest)
        if visitor is None:
            visitor = welcome(f"{key}:{wanted}" if key else None)
        data = asked | {"inputs": inputs_id, "total": total}
        driver = record.inner[NAME]
        value = load(record.schema(driver), data)
        order = Order(
            feature=NAME,
            owner=visitor.owner,
            user=visitor.user,
            input=value,
            data=data,
            context=request_context(record),
            extension=record.name,
            payer=NOBODY,  # the parts are what costs
        )
        work = record.work(driver, value)
        start = Start(
            record=record,
            order=order,
            claim=claim(record, visitor.owner, key, wanted),
            work=replace(work, prompt=0, settings=replace(work.settings, max_tokens=0)),
        )
        run, new = start.carry_out()
    except BaseException:
        with suppress(StoreUnavailable):
            batch.drop()
        raise
    if not new:
        batch.drop()
    response = json_response(describe(record, run), 202)
    response.headers["Location"] = url_for(f"{record.name}.batch", run_id=run.id)
    response.headers["Retry-After"] = POLL_AGAIN
    response.headers.update(rate_limits(run.standing if new else ()))
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _list(record: Record) -> Response:
    visitor = recognize(record)
    runs = [] if visitor is None else record.registry.listed(visitor.owner, feature=NAME)
    return json_response({"data": [describe(record, run) for run in runs]})


def _status(record: Record, run_id: str) -> Response:
    return status(record, _found(record, run_id, "read"), describe)


def _results(record: Record, run_id: str) -> Response:
    run = _found(record, run_id, "read")
    after, limit = _number("after", 0), min(_number("limit", MOST_RESULTS), MOST_RESULTS)
    ended = run.ended
    batch, size = kept(record, run), 0
    lines: list[bytes] = []
    while len(lines) < limit and size < MOST_RESULT_BYTES:
        piece = batch.results(after + len(lines), min(limit - len(lines), READ))
        lines += piece
        size += sum(map(len, piece))
        if len(piece) < READ:
            break
    response = Response(b"".join(line + b"\n" for line in lines), mimetype=MEDIA_TYPE)
    response.headers["Cache-Control"] = "no-store"
    cursor = after + len(lines)
    response.headers["X-Cursor"] = str(cursor)
    if not ended or len(lines) == limit or size >= MOST_RESULT_BYTES:
        following = url_for(f"{record.name}.batch_results", run_id=run_id, after=cursor, limit=limit)
        response.headers["Link"] = f'<{following}>; rel="next"'
    return response


def _cancel(record: Record, run_id: str) -> Response:
    return cancelled(record, _found(record, run_id, "stop"), describe)


def _forget(record: Record, run_id: str) -> Response:
    record.forget(_found(record, run_id, "delete"))
    return Response(status=204)


def _found(record: Record, run_id: str, action: str) -> AnyRun:
    run = accessible_run(record, run_id, action)
    if run.feature != NAME:
        raise RunNotFound
    return run


def _asked(most: int) -> tuple[dict[str, Any], Iterable[bytes]]:
    """What is asked for, and the inputs, of which nothing has been kept yet.

    :param most: bytes of one input.
    """
    if request.mimetype in (MEDIA_TYPE, *OTHER_NAMES):
        return dict(load(BatchQuery(), request.args.to_dict())), _lines(_limit(MOST_BYTES), most)
    if not request.is_json:
        raise NotJSON(f"Send a JSON object with the feature and its inputs, or {MEDIA_TYPE}, an input a line.")
    body = _body(_limit(MOST_BYTES_AS_ARRAY))
    if isinstance(body, list):
        asked, inputs = dict(load(BatchQuery(), request.args.to_dict())), body
    else:
        asked = dict(load(BatchInput(), body))
        inputs = asked.pop("inputs")
        asked |= asked.pop("rate", {})
    return asked, (_no_longer(msgspec.json.encode(one), most) for one in inputs)


def _keep(batch: Batch, lines: Iterable[bytes]) -> tuple[int, str]:
    """Keep the inputs, some at a time.

    :returns: their number, and their digest.
    """
    total, hashed, waiting, size = 0, hashlib.sha256(), [], 0
    for line in lines:
        total += 1
        if total > MOST_INPUTS:
            raise InvalidInput(f"A batch has {MOST_INPUTS} inputs at most.", errors={"inputs": ["Too many."]})
        hashed.update(line + b"\n")
        waiting.append(line)
        size += len(line)
        if size > WRITTEN:
            batch.add(waiting)
            waiting, size = [], 0
    if waiting:
        batch.add(waiting)
    if not total:
        raise InvalidInput("A batch has at least one input.", errors={"inputs": ["Empty."]})
    return total, hashed.hexdigest()


def _feature(record: Record, name: str) -> Feature:
    for feature in (known := [one for one in record.features.values() if _fits(record, one)]):
        if feature.name == name:
            return feature
    names = ", ".join(sorted(feature.name for feature in known))
    message = f"Must be one of: {names}." if known else "The application has none for batches."
    raise InvalidInput(f"The input is not valid: feature: {message}", errors={"feature": [message]})


def _fits(record: Record, feature: Feature) -> bool:
    """Whether an input alone makes a run of a feature: no variable of its rule, and no file."""
    if not isinstance(feature, JobFeature | ReplyFeature) or "<" in feature.rule:
        return False
    return not any(field.required for field in file_fields(record.schema(feature)).values())


def _limit(most: int) -> int:
    host = request.max_content_length
    limit = most if host is None else min(most, host)
    if request.content_length is not None and request.content_length > limit:
        raise ContentTooLarge(f"The request has more than {limit} bytes.")
    request.max_content_length = limit
    return limit


def _body(most: int) -> dict[str, Any] | list[Any]:
    body = request.stream.read(most + 1)
    if len(body) > most:
        raise ContentTooLarge(f"The request has more than {most} bytes.")
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise RequestRefused("The request's body is not valid JSON.") from None
    if not isinstance(decoded, (dict, list)):
        raise InvalidInput("The input must be a JSON object, or an array of inputs.")
    return decoded


def _lines(most: int, most_of_one: int) -> Iterator[bytes]:
    """The inputs as they arrive; empty lines are none."""
    size = 0
    while line := request.stream.readline(most_of_one + 1):
        size += len(line)
        if size > most:
            raise ContentTooLarge(f"The request has more than {most} bytes.")
        if line := _no_longer(line, most_of_one).strip():
            yield line


def _no_longer(line: bytes, most: int) -> bytes:
    if len(line) > most:
        raise ContentTooLarge(f"One of the inputs has more than {most} bytes.")
    return line


def _number(name: str, default: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or (name == "limit" and int(text) < 1):
        raise RequestRefused(f"{name} is a whole number.")
    return int(text)
