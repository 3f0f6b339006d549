"""The document: everything that is mounted, under its address, with what it takes and what it answers."""

from __future__ import annotations

from flask import Flask
from marshmallow import EXCLUDE, INCLUDE, Schema, fields, validate
from openapi_spec_validator import validate as validate_document

from flask_llmstream import ChatInput, LLMStream
from flask_llmstream.batches import BatchInput, BatchQuery
from flask_llmstream.history import AT_ONCE, AT_ONCE_MOST
from flask_llmstream.operations import OPERATIONS
from flask_llmstream.status import LONGEST_WAIT
from tests.conversation import instant, new_app
from tests.openapi.shop import Manual, operations, shop


def document_of(app: Flask, url: str = "/api/openapi.json", **more):
    response = app.test_client().get(url, **more)
    assert response.status_code == 200, response.text
    assert response.mimetype == "application/json"
    return response.json


def schema_of(document, path):
    """What is sent to a path as JSON."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def test_it_is_openapi_3_1_and_names_the_application():
    with shop() as (app, _):
        document = document_of(app)
    validate_document(document)
    assert document["openapi"] == "3.1.0"
    assert document["info"]["title"] == app.name


def test_everything_that_is_mounted_is_in_it():
    with shop() as (app, _):
        document = document_of(app)
        mounted = {rule.endpoint for rule in app.url_map.iter_rules() if rule.endpoint.startswith("llmstream.")}
        mounted -= {rule.endpoint for rule in app.url_map.iter_rules() if rule.websocket}  # OpenAPI has no word for it
    described = set(operations(document))
    assert {name.removesuffix("-get") for name in described} == mounted
    assert {"llmstream.chat", "llmstream.chat-get", "llmstream.appraise-status", "llmstream.openapi"} <= described
    assert {f"llmstream.{name}" for name in OPERATIONS} <= described


def test_a_feature_that_replaces_the_default_chat_is_what_is_described():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/chat/stream", methods=["POST"])
    def tutor(run):
        """Teach."""

    path = document_of(app)["paths"]["/api/chat/stream"]
    assert path.keys() == {"post"}
    assert path["post"]["summary"] == "Teach."


def test_a_function_s_first_line_is_its_summary_and_the_rest_is_nobody_s_business():
    with shop() as (app, _):
        text = app.test_client().get("/api/openapi.json").text
        operation = operations(document_of(app))["llmstream.advise"]
    assert operation["summary"] == "Advise a customer."
    assert "Nobody but the team" not in text
    assert app.config["SECRET_KEY"] not in text


def test_what_a_path_captures():
    app = new_app()
    llm = LLMStream(app, model=instant())
    rule = "/<word>/<int:n>/<int(min=3, signed=True):m>/<float(max=2):x>/<uuid:u>/<any(a, b):e>/<path:p>"
    llm.reply(rule, max_tokens=9)(lambda run: "")
    ((path, item),) = ((path, item) for path, item in document_of(app)["paths"].items() if "{word}" in path)
    assert path == "/{word}/{n}/{m}/{x}/{u}/{e}/{p}"
    assert all(one["in"] == "path" and one["required"] for one in item["parameters"])
    assert {one["name"]: one["schema"] for one in item["parameters"]} == {
        "word": {"type": "string", "pattern": "^[^/]+$"},
        "n": {"type": "integer", "minimum": 0},
        "m": {"type": "integer", "minimum": 3},
        "x": {"type": "number", "minimum": 0, "maximum": 2},
        "u": {"type": "string", "format": "uuid"},
        "e": {"enum": ["a", "b"]},
        "p": {"type": "string", "minLength": 1},
    }


def test_an_address_that_flask_does_not_take_for_one_is_answered_by_flask():
    with shop() as (app, _):
        found = operations(document_of(app))
        for path in ("/api/x/products", "/api/x/products/1"):
            response = app.test_client().get(path)
            assert (response.status_code, response.mimetype) == (404, "text/html")
    assert found["llmstream.appraise"]["responses"]["404"]["content"].keys() == {"text/html"}
    both = {"application/problem+json", "text/html"}
    assert found["llmstream.appraise-status"]["responses"]["404"]["content"].keys() == both
    assert found["llmstream.run"]["responses"]["404"]["content"].keys() == {"application/problem+json"}


def test_addresses_are_those_under_which_it_is_mounted():
    app = new_app()
    LLMStream(app, model=instant(), url_prefix="/v1/ai")
    LLMStream(app, model=instant())
    document = document_of(app, "/v1/ai/openapi.json", environ_overrides={"SCRIPT_NAME": "/shop"})
    assert document["servers"] == [{"url": "/shop"}]
    assert all(path.startswith("/v1/ai/") for path in document["paths"])
    assert all(name.startswith("llmstream-v1-ai.") for name in operations(document))
    assert document_of(app, "/v1/ai/openapi.json")["servers"] == [{"url": "/"}]


def test_event_streams_are_marked():
    with shop() as (app, _):
        found = operations(document_of(app))
    assert {
        name.removeprefix("llmstream.") for name, operation in found.items() if operation.get("x-event-stream")
    } == {
        "chat",
        "chat-get",
        "advise",
        "advise-get",
        "events",
        "feed",
    }
    content = found["llmstream.advise"]["responses"]["200"]["content"]
    assert content.keys() == {"text/event-stream"}
    assert content["text/event-stream"]["x-event-schema"] == {"$ref": "#/components/schemas/Event"}


def test_a_conversation_s_bounds_are_told():
    with shop(LLMSTREAM_MODELS=["small", "large"], LLMSTREAM_MAX_MESSAGE=77) as (app, _):
        document = document_of(app)
    chat, advice = schema_of(document, "/api/chat/stream"), schema_of(document, "/api/{shop}/advice")

    def roles(schema):
        return schema["properties"]["messages"]["items"]["allOf"][1]["properties"]["role"]["enum"]

    assert (roles(chat), roles(advice)) == (["user", "assistant"], ["user"])
    assert chat["properties"]["model"] == {"enum": ["small", "large"]}
    assert chat["properties"]["message"]["maxLength"] == 77
    assert chat["additionalProperties"] is False
    assert chat["properties"]["conversation"]["pattern"] == "^[A-Za-z0-9_-]{16,64}$"
    assert schema_of(document, "/api/answer") == chat  # one component for both


def test_a_schema_is_told_as_marshmallow_takes_it():
    class Part(Schema):
        class Meta:
            unknown = INCLUDE

        n = fields.Integer()

    class Everything(Schema):
        class Meta:
            unknown = EXCLUDE

        part = fields.Nested(Part, data_key="the-part")
        price = fields.Decimal(
            load_default=5, validate=validate.Range(min=0, max=10, min_inclusive=False, max_inclusive=False)
        )
        word = fields.String(required=True, validate=validate.Regexp(r"(?P<first>a|b)\Z"))
        either = fields.String(validate=validate.Regexp("a|b"))
        python_only = fields.String(validate=validate.Regexp(r"(?i)a"))
        choice = fields.String(allow_none=True, validate=validate.OneOf(["a", "b"]))
        since = fields.Date()
        made = fields.Integer(dump_only=True)

    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.job("/api/everything", input=Everything)(lambda run: None)
    document = document_of(app)
    told = schema_of(document, "/api/everything")
    assert told["required"] == ["word"]
    assert "additionalProperties" not in told
    assert document["components"]["schemas"]["Part"]["additionalProperties"] is True
    assert told["properties"] == {
        "the-part": {"$ref": "#/components/schemas/Part"},
        "price": {"type": "number", "default": 5, "exclusiveMinimum": 0, "exclusiveMaximum": 10},
        "word": {"type": "string", "pattern": "^(?:(a|b)$)"},
        "either": {"type": "string", "pattern": "^(?:a|b)"},
        "python_only": {"type": "string"},
        "choice": {"type": ["string", "null"], "enum": ["a", "b", None]},
        "since": {"type": "string", "format": "date"},
    }


def test_two_schemas_of_one_name_stay_two():
    def make(field):
        return type("Thing", (Schema,), {"field": field})

    app = new_app()
    llm = LLMStream(app, model=instant())
    nested = type("Holder", (Schema,), {"thing": fields.Nested(make(fields.Boolean()))})
    for name, schema in {"a": make(fields.String()), "b": make(fields.Integer()), "c": nested}.items():
        function = lambda run: None  # noqa: E731
        function.__name__ = name
        llm.job(f"/api/{name}", input=schema)(function)
    document = document_of(app)
    assert schema_of(document, "/api/a")["properties"] == {"field": {"type": "string"}}
    assert schema_of(document, "/api/b")["properties"] == {"field": {"type": "integer"}}
    holder = schema_of(document, "/api/c")["properties"]["thing"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][holder]["properties"] == {"field": {"type": "boolean"}}


def test_a_schema_may_contain_itself():
    class Tree(Schema):
        branches = fields.List(fields.Nested(lambda: Tree()))

    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.job("/api/tree", input=Tree)(lambda run: None)
    tree = schema_of(document_of(app), "/api/tree")["properties"]["branches"]["items"]["$ref"]
    assert tree.rpartition("/")[2] in document_of(app)["components"]["schemas"]


def test_files_are_sent_as_a_form():
    with shop() as (app, _):
        document = document_of(app)
    operation = operations(document)["llmstream.translate"]
    ((media_type, content),) = operation["requestBody"]["content"].items()
    assert media_type == "multipart/form-data"
    assert content["encoding"] == {
        "document": {"contentType": "text/plain"},
        "pictures": {"contentType": "image/png, image/jpeg"},
    }
    manual = document["components"]["schemas"]["Manual"]
    assert manual["properties"]["document"] == {"type": "string", "format": "binary"}
    assert manual["properties"]["pictures"]["items"] == {"type": "string", "format": "binary"}
    assert "`file-refused`" in operation["responses"]["415"]["description"]


def test_where_no_file_has_to_be_there_json_does():
    class Optional(Manual):
        document = fields.String()

    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.job("/api/optional", input=Optional)(lambda run: None)
    assert schema_of(document_of(app), "/api/optional")["properties"].keys() == {"document", "language", "pages"}


def test_the_input_of_an_event_source_is_in_the_query():
    with shop() as (app, _):
        parameters = document_of(app)["paths"]["/api/chat/stream"]["get"]["parameters"]
    found = {one["name"]: one for one in parameters if one["in"] == "query"}
    assert found.keys() >= {"message", "conversation", "max_tokens", "key", "after"}
    assert found["messages"]["content"].keys() == {"application/json"}


def test_what_a_job_and_a_reply_return_is_told():
    with shop() as (app, _):
        found = operations(document_of(app))
    verdict = {"$ref": "#/components/schemas/Verdict"}
    assert found["llmstream.judge"]["responses"]["200"]["content"]["application/json"]["schema"] == verdict
    run = {"$ref": "#/components/schemas/Run"}
    for name in ("appraise", "appraise-status"):
        schema = found[f"llmstream.{name}"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"allOf": [run, {"properties": {"result": {"anyOf": [verdict, {"type": "null"}]}}}]}


def test_problems_say_of_which_kind_they_can_be():
    with shop() as (app, _):
        found = operations(document_of(app))
    job, reply, status = (found[f"llmstream.{name}"]["responses"] for name in ("appraise", "judge", "run"))
    assert job.keys() == {"200", "202", "400", "401", "403", "404", "413", "415", "422", "429", "503"}
    assert {"422", "429", "502", "504"} <= reply.keys()
    assert "`invalid-answer`: " in reply["502"]["description"]
    assert "`run-expired`: " in status["410"]["description"]
    assert status["410"]["content"].keys() == {"application/problem+json"}


def test_numbers_are_those_that_the_views_go_by():
    parameters = {name: {one["name"]: one["schema"] for one in OPERATIONS[name].parameters} for name in OPERATIONS}
    limit = parameters["conversations"]["limit"]
    assert (limit["default"], limit["maximum"]) == (AT_ONCE, AT_ONCE_MOST)
    assert parameters["run"]["wait"]["maximum"] == LONGEST_WAIT


def test_what_starts_a_batch_is_what_its_schemas_take():
    batch = OPERATIONS["start_batch"]
    assert batch.content is not None
    sent = batch.content["application/json"]["schema"]["properties"]
    assert sent.keys() == {*BatchInput().fields, "inputs"}
    assert sent["rate"]["properties"].keys() == BatchInput().fields["rate"].schema.fields.keys()
    assert {one["name"] for one in batch.parameters if one["in"] == "query"} == BatchQuery().fields.keys()


def test_pages_of_other_origins_do_not_get_it():
    with shop() as (app, _):
        response = app.test_client().get("/api/openapi.json", headers={"Origin": "https://elsewhere.example"})
        assert response.status_code == 403


def test_nobody_has_to_sign_in_for_it():
    app = new_app()
    LLMStream(app, model=instant(), identify=lambda: None)
    document_of(app)


def test_an_application_s_own_fields_stand_beside_the_conversation_s():
    class Tutoring(ChatInput):
        level = fields.String(load_default="beginner")

    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/tutor", input=Tutoring)(lambda run: None)
    told = schema_of(document_of(app), "/api/tutor")
    assert told["properties"]["level"] == {"type": "string", "default": "beginner"}
    assert "messages" in told["properties"]
