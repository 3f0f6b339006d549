"""Flask-Limiter: so many starts a visitor; what follows a start is not counted."""

from __future__ import annotations

import pytest
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from flask_llmstream import LLMStream
from tests.conversation import ask, events, instant, new_app, problem, text


def create_app(llm, limiter, **config):
    app = new_app(**config)
    limiter.init_app(app)
    llm.init_app(app)
    return app


@pytest.fixture
def limiter():
    # Without headers_enabled, a refusal does not say when to come back.
    return Limiter(get_remote_address, storage_uri="memory://", headers_enabled=True)


def test_limit_on_one_feature(limiter):
    llm = LLMStream(model=instant())

    @llm.stream("/api/limited/stream", decorators=[limiter.limit("2 per minute")])
    def limited(run):
        return run.model.stream(run.input.messages)

    client = create_app(llm, limiter).test_client()
    assert [text(ask(client, "/api/limited/stream")) for _ in range(2)] == ["Hello, you"] * 2
    refused = ask(client, "/api/limited/stream")
    assert problem(refused) == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "2 per 1 minute",
    }
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert text(ask(client)) == "Hello, you"  # the others have no limit


def test_what_follows_a_start_is_not_counted(limiter):
    llm = LLMStream(model=instant())

    @llm.stream("/api/limited/stream", decorators=[limiter.limit("1 per minute")])
    def limited(run):
        return run.model.stream(run.input.messages)

    client = create_app(llm, limiter).test_client()
    answer = ask(client, "/api/limited/stream")
    assert text(answer) == "Hello, you"
    run = answer.headers["Location"]
    for _ in range(3):
        assert text(client.get(f"{run}/events")) == "Hello, you"
        assert client.get(run).status_code == 200
        assert client.post(f"{run}/cancel").status_code == 200
    assert ask(client, "/api/limited/stream").status_code == 429


def test_each_feature_has_a_limit_of_its_own(limiter):
    llm = LLMStream(model=instant())
    for name, amount in (("summary", 1), ("translation", 2)):

        def feature(run):
            return run.model.stream(run.input.messages)

        feature.__name__ = name
        llm.stream(f"/api/{name}", decorators=[limiter.limit(f"{amount} per minute")])(feature)

    client = create_app(llm, limiter).test_client()
    for name, amount in (("summary", 1), ("translation", 2)):
        answers = [ask(client, f"/api/{name}") for _ in range(amount + 1)]
        assert [answer.status_code for answer in answers] == [200] * amount + [429]
        assert [text(answer) for answer in answers[:-1]] == ["Hello, you"] * amount


def test_limit_by_visitor(limiter):
    llm = LLMStream(model=instant())
    per_visitor = limiter.limit("1 per minute", key_func=lambda: llm.visitor().owner)
    llm.stream("/api/limited/stream", decorators=[per_visitor])(lambda run: run.model.stream(run.input.messages))
    app = create_app(llm, limiter)
    app.add_url_rule("/", "page", lambda: llm.visitor().owner)
    ada, eve = app.test_client(), app.test_client()
    for client in (ada, eve):
        client.get("/")
        assert text(ask(client, "/api/limited/stream")) == "Hello, you"
        assert ask(client, "/api/limited/stream").status_code == 429


def test_limit_on_the_default_chat(limiter):
    llm = LLMStream(model=instant())

    @llm.stream("/api/chat/stream", decorators=[limiter.limit("1 per minute")])
    def chat(run):
        return run.model.stream(run.input.messages)

    client = create_app(llm, limiter).test_client()
    assert text(ask(client)) == "Hello, you"
    assert problem(ask(client))["status"] == 429


def test_limit_of_the_whole_application():
    limiter = Limiter(
        get_remote_address, storage_uri="memory://", headers_enabled=True, default_limits=["1 per minute"]
    )
    client = create_app(LLMStream(model=instant()), limiter).test_client()
    answer = ask(client)
    assert text(answer) == "Hello, you"
    refused = ask(client)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0


def test_limit_on_all_routes_of_the_extension(limiter):
    """Polling, for example. Each route is counted for itself."""
    llm = LLMStream(model=instant(), decorators=[limiter.limit("3 per minute")])
    client = create_app(llm, limiter).test_client()
    answer = ask(client)
    assert text(answer) == "Hello, you"
    run = answer.headers["Location"]
    for url in (run, f"{run}/events", "/api/usage"):
        assert [client.get(url, buffered=True).status_code for _ in range(4)] == [200] * 3 + [429]
        assert problem(client.get(url))["title"] == "Too Many Requests"


def test_limit_on_an_application_s_own_routes_beside_the_extension_s_own_limits(limiter):
    """Runs are counted by the extension, requests by Flask-Limiter; neither counts the other's."""
    app = create_app(LLMStream(model=instant()), limiter, LLMSTREAM_STARTS_PER_USER="2/minute")
    app.add_url_rule("/search", "search", limiter.limit("1 per minute")(lambda: "found"))
    client = app.test_client()
    client.get("/search")
    answers = [ask(client, body={"messages": [{"role": "user", "content": f"/echo {n}"}]}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [text(answer) for answer in answers[:2]] == ["0", "1"]
    assert problem(answers[2])["limit"] == "starts"
    assert answers[2].headers["RateLimit"].startswith('"starts";r=0;t=')
    assert client.get("/search").status_code == 429
    assert client.get(answers[0].headers["Location"]).status_code == 200


def test_a_refusal_s_own_retry_after_stands_beside_the_limiter_s_headers(limiter):
    llm = LLMStream(model=instant())
    llm.stream("/api/limited/stream", decorators=[limiter.limit("9 per minute")])(
        lambda run: run.model.stream([{"role": "user", "content": "/fail limit"}])
    )
    client = create_app(llm, limiter, LLMSTREAM_RETRIES=0).test_client()
    refused = ask(client, "/api/limited/stream")
    assert problem(refused)["type"].endswith("upstream-rate-limited")
    assert refused.headers.getlist("Retry-After") == ["2"]  # the limiter's is a minute, when its window ends
    assert refused.headers["X-RateLimit-Remaining"] == "8"


def test_an_event_source_is_refused_like_any_other_view(limiter):
    llm = LLMStream(model=instant())
    llm.stream("/api/limited/stream", decorators=[limiter.limit("1 per minute")])(lambda run: "done")
    client = create_app(llm, limiter).test_client()
    ask_by_get = {"query_string": {"message": "Hi"}, "headers": {"Accept": "text/event-stream"}}
    events(client.get("/api/limited/stream", **ask_by_get))
    assert problem(client.get("/api/limited/stream", **ask_by_get))["status"] == 429
