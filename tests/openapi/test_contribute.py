"""A host's own document takes the operations in, and keeps its own."""

from __future__ import annotations

import pytest
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask
from flask.views import MethodView
from flask_smorest import Api, Blueprint
from marshmallow import Schema, fields
from openapi_spec_validator import validate as validate_document

from flask_llmstream import LLMStream
from flask_llmstream.errors import ConfigurationError
from flask_llmstream.openapi import contribute
from tests.conversation import instant
from tests.openapi.shop import operations, shop


class Run(Schema):
    """The host has runs, too."""

    distance = fields.Float(required=True)


def host(app):
    """The document of a sports club that uses flask-smorest."""
    app.config.update(API_TITLE="Club", API_VERSION="7", OPENAPI_VERSION="3.1.0")
    api = Api(app)
    runners = Blueprint("runners", "runners", url_prefix="/runners")

    @runners.route("/<int:runner>/runs")
    class Runs(MethodView):
        @runners.response(200, Run(many=True))
        def get(self, runner):
            return [{"distance": 5.0}]

    api.register_blueprint(runners)
    return api


def test_operations_stand_beside_the_host_s_own():
    with shop() as (app, _):
        api = host(app)
        contribute(api.spec, app)
        document, own = api.spec.to_dict(), app.test_client().get("/api/openapi.json").json
    validate_document(document)
    assert document["info"] == {"title": "Club", "version": "7"}
    assert document["paths"].keys() == {"/runners/{runner}/runs", *own["paths"]}
    assert document["paths"]["/runners/{runner}/runs"]["get"]["responses"]["200"]
    assert document["components"]["schemas"]["Run"]["properties"].keys() == {"distance"}
    assert {f"llmstream.{name}" for name in own["components"]["schemas"]} <= document["components"]["schemas"].keys()


def test_they_are_those_of_the_own_document():
    with shop() as (app, _):
        api = host(app)
        contribute(api.spec, app)
        document, own = api.spec.to_dict(), app.test_client().get("/api/openapi.json").json
    for path, item in own["paths"].items():
        ours = repr(item).replace("#/components/schemas/", "#/components/schemas/llmstream.")
        assert repr({name: document["paths"][path][name] for name in item}) == ours


def test_every_llmstream_of_the_application_is_in_it():
    with shop() as (app, _):
        second = LLMStream(app, model=instant(), url_prefix="/v2")
        spec = APISpec("Club", "7", "3.1.0", plugins=[MarshmallowPlugin()])
        contribute(spec, app)
        second.record(app).close()
    document = spec.to_dict()
    validate_document(document)
    assert {"llmstream.runs", "llmstream-v2.runs", "llmstream.judge"} <= operations(document).keys()
    assert {"llmstream.Run", "llmstream-v2.Run"} <= document["components"]["schemas"].keys()


def test_without_any_there_is_nothing_to_add():
    spec = APISpec("Club", "7", "3.1.0")
    contribute(spec, Flask("club"))
    assert spec.to_dict()["paths"] == {}


def test_an_older_openapi_is_refused():
    with shop() as (app, _), pytest.raises(ConfigurationError, match=r"OPENAPI_VERSION.*3\.1\.0"):
        contribute(APISpec("Club", "7", "3.0.3"), app)
