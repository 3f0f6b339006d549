"""Who may start a run, whose it is, and who else may do something with it."""

from __future__ import annotations

import pytest
from flask import Flask, g, request

from flask_llmstream import LLMStream
from flask_llmstream.identity import SESSION_KEY
from tests.conversation import KEY, QUESTION, ask, events, instant, new_app, problem, text

STREAM = {"Accept": "text/event-stream"}


def by_header():
    """An application's hook, for tests: the name that a request gives."""
    return request.headers.get("User")


def as_user(name):
    return {"User": name}


def identity(client):
    """What the session's cookie says."""
    with client.session_transaction() as session:
        return session.get(SESSION_KEY)


def run_requests(run):
    """Every request that one can make about a run."""
    return [
        ("GET", run),
        ("GET", f"{run}/events"),
        ("GET", f"/api/chat/stream?after={run.rpartition('/')[2]}:1-0"),
        ("POST", f"{run}/cancel"),
        ("DELETE", run),
    ]


# With an identify hook


def test_nobody_is_a_401_with_a_challenge():
    app = new_app()  # in testing mode: with a hook, that opens no door
    LLMStream(app, model=instant(), identify=by_header)
    refused = ask(app)
    assert refused.headers["WWW-Authenticate"].startswith("Bearer realm=")
    said = problem(refused)
    assert said["status"] == 401
    assert said["type"].endswith("not-authenticated")
    assert "Set-Cookie" not in refused.headers
    for method, url in run_requests("/api/runs/none"):
        assert problem(app.test_client().open(url, method=method, headers=STREAM))["status"] == 401


def test_an_event_source_is_told_so_by_an_event():
    app = new_app()
    LLMStream(app, model=instant(), identify=by_header)
    answer = app.test_client().get("/api/chat/stream?message=Hi", headers=STREAM)
    assert events(answer)[-1]["problem"]["status"] == 401


@pytest.mark.parametrize("user", ["ada", 7, 0])
def test_somebody_is_known_to_the_function_as_the_hook_names_them(user):
    app, users = new_app(), []
    llm = LLMStream(app, model=instant(), identify=lambda: user)

    @llm.stream("/api/whoami")
    def whoami(run):
        users.append(run.user)
        yield "you"

    assert text(ask(app, "/api/whoami")) == "you"
    assert users == [user]


@pytest.mark.parametrize("user", [True, object(), b"7"])
def test_what_does_not_last_is_refused_as_an_identity(user, caplog):
    app = new_app()
    LLMStream(app, model=instant(), identify=lambda: user)
    said = problem(ask(app))
    assert (said["status"], said["detail"]) == (500, "The application is not set up correctly.")
    assert "identify must return a string or a number that lasts" in caplog.text


def test_the_hook_runs_in_the_request():
    app = new_app()
    app.before_request(lambda: setattr(g, "user_id", "7"))
    LLMStream(app, model=instant(), identify=lambda: g.user_id)
    assert text(ask(app)) == "Hello, you"


def test_a_run_is_its_owner_s_and_for_others_it_does_not_exist():
    app = new_app()
    LLMStream(app, model=instant(), identify=by_header)
    client = app.test_client()
    answer = ask(client, headers=as_user("ada"))
    assert text(answer) == "Hello, you"
    run = answer.headers["Location"]
    for method, url in run_requests(run):
        refused = problem(client.open(url, method=method, headers=STREAM | as_user("eve")))
        assert refused == problem(client.get("/api/runs/none", headers=as_user("eve")))
        assert refused["status"] == 404
    assert client.get(run, headers=as_user("ada")).json["text"] == "Hello, you"


def test_a_key_is_its_owner_s_too():
    app = new_app()
    LLMStream(app, model=instant(), identify=by_header)
    client = app.test_client()
    mine = ask(client, headers=as_user("ada") | {"Idempotency-Key": KEY})
    theirs = ask(client, headers=as_user("eve") | {"Idempotency-Key": KEY})
    assert mine.headers["Location"] != theirs.headers["Location"]
    assert text(mine) == text(theirs) == "Hello, you"


def test_authorize_decides_beyond_ownership():
    app, asked = new_app(), []

    def authorize(user, action, subject):
        asked.append((user, action, subject.owner, subject.feature))
        return user == "admin"

    LLMStream(app, model=instant(), identify=by_header, authorize=authorize)
    client = app.test_client()
    answer = ask(client, headers=as_user("ada"))
    text(answer)
    run = answer.headers["Location"]
    for method, url in run_requests(run):
        assert client.open(url, method=method, headers=STREAM | as_user("eve")).status_code == 404
    assert [action for user, action, *_ in asked] == ["read", "read", "read", "stop", "delete"]
    assert {(user, owner, feature) for user, _, owner, feature in asked} == {("eve", "user:ada", "chat")}
    asked.clear()
    assert client.get(run, headers=as_user("ada")).status_code == 200
    assert asked == []  # the owner is not in question
    for method, url in run_requests(run):
        with client.open(url, method=method, headers=STREAM | as_user("admin")) as allowed:
            assert allowed.status_code in (200, 204)
            allowed.get_data()
    assert client.get(run, headers=as_user("ada")).status_code == 404  # the administrator has deleted it


# Without a hook


def test_anonymous_visitors_are_let_in_only_where_that_is_allowed():
    app = Flask(__name__)
    app.secret_key = "only a test"
    LLMStream(app, model=instant())
    said = problem(ask(app))
    assert said["status"] == 401
    for mode in ("testing", "debug"):  # looked up at each request
        setattr(app, mode, True)
        assert text(ask(app)) == "Hello, you"
        setattr(app, mode, False)
        assert problem(ask(app))["status"] == 401


def test_a_deployment_may_allow_anonymous_visitors():
    app = Flask(__name__)
    app.config.update(SECRET_KEY="only a test", LLMSTREAM_ALLOW_ANONYMOUS=True)
    LLMStream(app, model=instant())
    assert text(ask(app)) == "Hello, you"


def test_the_log_says_how_to_let_visitors_in(caplog):
    app = Flask(__name__)
    LLMStream(app, model=instant())
    assert problem(ask(app))["status"] == 401
    assert "identify hook, or set LLMSTREAM_ALLOW_ANONYMOUS" in caplog.text


def test_a_page_gives_an_anonymous_visitor_an_identity_on_its_first_load():
    app, users = new_app(), []
    llm = LLMStream(app, model=instant())

    @app.get("/")
    def page():
        return llm.visitor().user

    @llm.stream("/api/whoami")
    def whoami(run):
        users.append(run.user)
        yield "you"

    client = app.test_client()
    first = client.get("/").text
    assert first == identity(client) == client.get("/").text
    assert len(first) >= 22  # 128 bits
    answer = ask(client, "/api/whoami")
    assert text(answer) == "you"
    assert users == [first]
    assert "Set-Cookie" not in answer.headers
    assert app.test_client().get("/").text != first


def test_the_first_message_gives_one_where_no_page_did():
    app = new_app()
    LLMStream(app, model=instant())
    client = app.test_client()
    answer = ask(client)
    assert text(answer) == "Hello, you"
    assert identity(client)
    assert client.get(answer.headers["Location"]).status_code == 200
    assert app.test_client().get(answer.headers["Location"]).status_code == 404


def test_asking_for_a_run_gives_nobody_an_identity():
    app = new_app()
    LLMStream(app, model=instant())
    refused = app.test_client().get("/api/runs/none")
    assert refused.status_code == 404
    assert "Set-Cookie" not in refused.headers


def test_both_clicks_of_a_first_visit_set_the_same_cookie_and_own_the_run():
    app = new_app()
    LLMStream(app, model=instant())
    # Neither click has a cookie yet: as two browsers that share nothing but the key.
    clicks = app.test_client(), app.test_client()
    answers = [ask(click, headers={"Idempotency-Key": KEY}) for click in clicks]
    assert identity(clicks[0]) == identity(clicks[1])
    assert answers[0].headers["Location"] == answers[1].headers["Location"]
    assert [text(answer) for answer in answers] == ["Hello, you"] * 2
    for click in clicks:
        assert click.get(answers[0].headers["Location"]).status_code == 200


def test_whoever_knows_the_key_alone_becomes_nobody_else():
    """A client that has its key written into it makes every visitor send the same one."""
    app = new_app()
    LLMStream(app, model=instant())
    first, second = app.test_client(), app.test_client()
    theirs = ask(first, headers={"Idempotency-Key": KEY})
    assert text(theirs) == "Hello, you"
    other = {"messages": [{"role": "user", "content": "/echo Somebody else"}]}
    answer = ask(second, body=other, headers={"Idempotency-Key": KEY})
    assert text(answer) == "Somebody else"
    assert identity(second) != identity(first)
    assert answer.headers["Location"] != theirs.headers["Location"]
    for method, url in run_requests(theirs.headers["Location"]):
        assert second.open(url, method=method, headers=STREAM).status_code == 404


def test_a_key_that_is_refused_changes_nobody_s_identity():
    app = new_app()
    LLMStream(app, model=instant())
    client = app.test_client()
    text(ask(client, headers={"Idempotency-Key": KEY}))
    before = identity(client)
    other = {"messages": [{"role": "user", "content": "/echo Another question"}]}
    refused = ask(client, body=other, headers={"Idempotency-Key": KEY})
    assert problem(refused)["type"].endswith("idempotency-key-reused")
    assert "Set-Cookie" not in refused.headers
    assert identity(client) == before


def test_a_first_message_that_is_refused_gives_nobody_an_identity():
    app = new_app()
    LLMStream(app, model=instant())
    refused = ask(app, body={"messages": []}, headers={"Idempotency-Key": KEY})
    assert refused.status_code == 422
    assert "Set-Cookie" not in refused.headers


def test_the_same_goes_for_an_event_source_whose_key_is_in_the_address():
    app = new_app()
    LLMStream(app, model=instant())
    clicks = app.test_client(), app.test_client()
    question = {"message": QUESTION["messages"][0]["content"], "key": KEY}
    for click in clicks:
        assert text(click.get("/api/chat/stream", query_string=question, headers=STREAM)) == "Hello, you"
    assert identity(clicks[0]) == identity(clicks[1])


def test_the_identity_from_a_key_cannot_be_made_without_the_secret():
    keys = {}
    for secret in ("one secret", "another secret"):
        app = new_app(SECRET_KEY=secret)
        LLMStream(app, model=instant())
        client = app.test_client()
        text(ask(client, headers={"Idempotency-Key": KEY}))
        keys[secret] = identity(client)
    assert keys["one secret"] != keys["another secret"]
    assert not any(KEY in name for name in keys.values())


def test_a_visitor_who_is_known_stays_the_same_whatever_the_key():
    app = new_app()
    LLMStream(app, model=instant())
    client = app.test_client()
    text(ask(client))
    before = identity(client)
    text(ask(client, headers={"Idempotency-Key": KEY}))
    assert identity(client) == before


def test_a_key_that_can_be_guessed_is_refused():
    app = new_app()
    LLMStream(app, model=instant())
    assert problem(ask(app, headers={"Idempotency-Key": "1"}))["type"].endswith("invalid-idempotency-key")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": KEY}], ids=["no key", "key"])
def test_without_a_secret_key_a_problem_says_so(headers):
    app = new_app(SECRET_KEY=None)
    LLMStream(app, model=instant())
    said = problem(ask(app, headers=headers))
    assert said["status"] == 503
    assert said["type"].endswith("secret-key-missing")
    assert "SECRET_KEY" in said["detail"]


def test_with_a_hook_no_secret_key_is_needed():
    app = new_app(SECRET_KEY=None)
    LLMStream(app, model=instant(), identify=by_header)
    assert text(ask(app, headers=as_user("ada"))) == "Hello, you"
