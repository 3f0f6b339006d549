"""An application that has something of everything, and clients who hold its answers against its document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from marshmallow import Schema, fields, validate
from werkzeug.test import TestResponse

from flask_llmstream import LLMStream, Progress
from flask_llmstream.uploads import File
from tests.conversation import instant, new_app

NOT_WORTH_A_WORD = {
    "Cache-Control",
    "Content-Encoding",
    "Content-Length",
    "Content-Type",
    "Set-Cookie",
    "Vary",
    "X-Accel-Buffering",
    "X-Content-Type-Options",
}
ABOUT_FILES = {"Accept-Ranges", "Content-Disposition", "Date", "Last-Modified"}
"""What Flask adds to files."""


class Product(Schema):
    name = fields.String(required=True, validate=validate.Length(min=1, max=80))
    price = fields.Decimal(validate=validate.Range(min=0, min_inclusive=False))
    sizes = fields.List(fields.Integer(strict=True), validate=validate.Length(max=5))


class Manual(Schema):
    document = File(types=["text/plain"], required=True)
    pictures = fields.List(File(types=["image/png", "image/jpeg"]))
    language = fields.String(validate=validate.OneOf(["en", "nb"]))
    pages = fields.Integer(strict=True, allow_none=True)


class Verdict(Schema):
    label = fields.String(required=True, validate=validate.OneOf(["sells", "does not"]))
    reasons = fields.List(fields.String(), required=True)


@contextmanager
def shop(*, hooks: Mapping[str, Any] | None = None, **config: Any) -> Iterator[tuple[Flask, LLMStream]]:
    """The application.

    :param hooks: what else `LLMStream` is given.
    """
    app = new_app(**config)
    llm = LLMStream(app, model=instant(), **(hooks or {}))

    @llm.stream("/api/<int:shop>/advice", roles=("user",))
    def advise(run):
        """Advise a customer.

        Nobody but the team reads this.
        """
        return run.model.stream(run.input.messages)

    @llm.job("/api/<int:shop>/products", input=Product, result=Verdict, status="/api/<int:shop>/products/<run_id>")
    def appraise(run):
        yield Progress(0.5, run.input["name"])
        return {"label": "sells", "reasons": []}

    @llm.job("/api/manuals", input=Manual)
    def translate(run):
        return {"size": run.input["document"].size}

    @llm.reply("/api/verdict", input=Product, result=Verdict, max_tokens=100)
    def judge(run):
        return run.model.reply([{"role": "user", "content": run.input["name"]}], run.result_schema)

    @llm.reply("/api/answer", max_tokens=4000)
    def answer(run):
        return run.model.stream(run.input.messages)

    try:
        yield app, llm
    finally:
        llm.record(app).close()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All operations of a document, by their ids."""
    return {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    }


def strict(document: dict[str, Any]) -> dict[str, Any]:
    """A document's schemas, in which everything that is answered has to be named."""
    schemas = {}
    for name, schema in document["components"]["schemas"].items():
        open_ended = name == "Problem" or "properties" not in schema
        schemas[name] = schema if open_ended else schema | {"additionalProperties": False}
    return {"schemas": schemas}


class Reader(FlaskClient):
    """A client who has read the document, and fails where an answer is not what that says.

    Of `heard` it keeps which operations have answered which status.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.heard: set[tuple[str, int]] = set()
        self.document = FlaskClient(self.application, self.response_wrapper).get("/api/openapi.json").json
        self.components = strict(self.document)

    def open(self, *args: Any, **more: Any) -> TestResponse:
        response = super().open(*args, **more)
        self.check(response)
        return response

    def check(self, response: TestResponse) -> None:
        request = response.request
        rule, _ = self.application.url_map.bind("").match(request.path, request.method, return_rule=True)
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        operation = self.document["paths"][path][request.method.lower()]
        self.heard.add((operation["operationId"], response.status_code))
        said = operation["responses"][str(response.status_code)]
        kept_quiet = {"Content-Type", "Content-Length", "Cache-Control", "Vary", "Set-Cookie", "X-Content-Type-Options"}
        stream = {"Content-Encoding", "X-Accel-Buffering"} if operation.get("x-event-stream") else set()
        static = (
            {"Accept-Ranges", "Content-Disposition", "Date", "Last-Modified"}
            if "client" in operation["tags"]
            else set()
        )
        headers = set(response.headers.keys()) - kept_quiet - stream - static - said.get("headers", {}).keys()
        assert not headers, f"{operation['operationId']} answers {response.status} with {headers}"
        if "content" not in said:
            assert not response.data, f"{operation['operationId']} answers {response.status} with a body"
            return
        schema = said["content"][response.mimetype]["schema"]
        if response.is_json:
            Draft202012Validator({**schema, "components": self.components}).validate(response.json)
