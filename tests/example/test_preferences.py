"""What visitors prefer: kept for each of them, changed only by who knows what it was, and heeded by the model."""

from __future__ import annotations

import pytest

from example_app.preferences import LANGUAGES, VOICES, PreferencesInput

AT_FIRST = {"model": None, "temperature": None, "instructions": "", "voice": "alloy", "language": ""}
SETTINGS = "/api/settings"


def tag(client):
    return client.get(SETTINGS).headers["ETag"]


def save(client, settings, known=None):
    return client.put(SETTINGS, json=settings, headers={"If-Match": known or tag(client)})


def problem(response):
    assert response.mimetype == "application/problem+json"
    return response.json["type"].removeprefix("urn:problem-type:flask-llmstream:")


def test_at_first_nothing_is_preferred(client):
    response = client.get(SETTINGS)
    assert response.status_code == 200
    assert response.json == AT_FIRST
    assert response.headers["Cache-Control"] == "no-store"


def test_what_is_saved_is_read_again(client):
    wanted = {"instructions": "Be brief.", "temperature": 0.5, "voice": "echo", "language": "de", "model": None}
    saved = save(client, wanted)
    assert saved.status_code == 200
    read = client.get(SETTINGS)
    assert read.json == saved.json == wanted
    assert read.headers["ETag"] == saved.headers["ETag"]


def test_what_is_left_out_is_as_it_was_at_first(client):
    save(client, {"language": "de"})
    assert save(client, {"voice": "echo"}).json == AT_FIRST | {"voice": "echo"}


def test_who_has_them_is_not_sent_them_again(client):
    response = client.get(SETTINGS, headers={"If-None-Match": tag(client)})
    assert response.status_code == 304


def test_a_change_says_what_it_changes(client):
    response = client.put(SETTINGS, json={"language": "de"})
    assert response.status_code == 428
    assert problem(response) == "precondition-required"
    assert client.get(SETTINGS).json == AT_FIRST


def test_two_pages_do_not_overwrite_each_other(client):
    known = tag(client)
    assert save(client, {"language": "de"}, known).status_code == 200
    response = save(client, {"language": "fr"}, known)
    assert response.status_code == 412
    assert problem(response) == "precondition-failed"
    assert client.get(SETTINGS).json["language"] == "de"


def test_who_does_not_care_may_say_so(client):
    save(client, {"language": "de"})
    assert save(client, {"language": "fr"}, "*").json["language"] == "fr"


def test_the_same_again_is_as_it_was(client):
    first = save(client, AT_FIRST)
    assert save(client, AT_FIRST, first.headers["ETag"]).headers["ETag"] == first.headers["ETag"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("instructions", "x" * 4001),
        ("voice", "nobody"),
        ("language", "xx"),
        ("model", ""),
        ("colour", "red"),
    ],
)
def test_what_is_no_preference_is_refused(client, name, value):
    response = save(client, {name: value})
    assert response.status_code == 422
    assert problem(response) == "invalid-input"
    assert list(response.json["errors"]) == [name]
    assert client.get(SETTINGS).json == AT_FIRST


def test_what_is_no_json_is_refused(client):
    response = client.put(SETTINGS, data="language=de", headers={"If-Match": "*"})
    assert response.status_code == 415
    assert problem(response) == "not-json"


def test_each_visitor_has_their_own(make_app):
    app = make_app()
    ann, ben = app.test_client(), app.test_client()
    save(ann, {"language": "de"})
    assert ben.get(SETTINGS).json == AT_FIRST
    assert ann.get(SETTINGS).json["language"] == "de"


@pytest.mark.needs("redis-server")
def test_processes_on_one_redis_share_them(make_app, monkeypatch, redis_server):
    monkeypatch.setenv("FLASK_LLMSTREAM_REDIS_URL", redis_server.url)
    one, another = make_app().test_client(), make_app().test_client()
    save(one, {"language": "de"})
    another.set_cookie("session", one.get_cookie("session").value)
    assert another.get(SETTINGS).json["language"] == "de"
    assert save(another, {"language": "fr"}, tag(one)).status_code == 200
    assert one.get(SETTINGS).json["language"] == "fr"


def test_any_model_may_be_named_where_the_server_is_one_s_own(model, client):
    assert save(client, {"model": "large"}).status_code == 200


def test_models_that_are_listed_may_be_named(monkeypatch, make_app):
    monkeypatch.setenv("FLASK_LLMSTREAM_MODELS", "small,large")
    client = make_app().test_client()
    assert save(client, {"model": "large"}).status_code == 200
    assert save(client, {"model": "huge"}).json["errors"] == {"model": ["Must be one of: small, large."]}


def say(client, **more):
    body = {"messages": [{"role": "user", "content": "Hello"}], **more}
    response = client.post("/api/chat/stream", json=body)
    assert '"done":true' in response.text


def test_the_chat_heeds_them(model, client):
    save(client, {"instructions": "Be brief.", "temperature": 0.5, "language": "de", "model": "large"})
    say(client)
    asked = model.requests[-1].body
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief.\n\nWrite in German."},
        {"role": "user", "content": "Hello"},
    ]
    assert (asked["temperature"], asked["model"]) == (0.5, "large")


def test_a_visitor_without_any_gets_the_model_as_it_is(model, client):
    say(client)
    asked = model.requests[-1].body
    assert asked["messages"] == [{"role": "user", "content": "Hello"}]
    assert "temperature" not in asked
    assert asked["model"] == "scripted"


def test_what_the_page_asks_for_with_one_question_goes_before_them(model, client):
    save(client, {"temperature": 0.5, "model": "large"})
    say(client, model="small", temperature=1)
    assert (model.requests[-1].body["model"], model.requests[-1].body["temperature"]) == ("small", 1)


@pytest.mark.needs("redis-server")
def test_a_model_that_is_taken_off_the_list_is_not_asked_any_more(model, make_app, monkeypatch, redis_server):
    monkeypatch.setenv("FLASK_LLMSTREAM_REDIS_URL", redis_server.url)
    before = make_app().test_client()
    save(before, {"model": "large"})
    monkeypatch.setenv("FLASK_LLMSTREAM_MODELS", "scripted")
    after = make_app().test_client()
    after.set_cookie("session", before.get_cookie("session").value)
    say(after)
    assert model.requests[-1].body["model"] == "scripted"


def test_all_that_can_be_chosen_is_allowed():
    schema = PreferencesInput(models=None)
    for language in LANGUAGES:
        assert not schema.validate({"language": language})
    for voice in VOICES:
        assert not schema.validate({"voice": voice})
