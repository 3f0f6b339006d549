"""The chat by GET, as an `EventSource` asks: it sees neither the status nor the body of a refusal, and comes back."""

import json
import re

import pytest

from flask_llmstream import streams
from flask_llmstream.errors import UpstreamRateLimited
from flask_llmstream.sse import Decoder
from tests.conversation import ask, problem, text
from tests.puppet import Pause, Puppet, follow, stage

CHAT = "/api/chat/stream"
EVENT_STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def patient(monkeypatch):
    """A response that begins for want of anything else does so too late for the test."""
    monkeypatch.setattr(streams, "HEADERS_WITHIN", 3600)


def get(app, query="message=Hello", **headers):
    return app.test_client().get(f"{CHAT}?{query}", headers=EVENT_STREAM | headers)


def frames(response):
    """The events of a response, each with the id that it has on the wire."""
    with response:
        return Decoder().feed(response.data)


def test_get_is_the_same():
    with stage() as (app, _):
        assert text(get(app)) == "Hello"
        assert text(get(app, 'messages=[{"role":"user","content":"Hello"}]&max_tokens=5')) == "Hello"


@pytest.mark.parametrize("accept", ["*/*", "text/html", "image/png"])
@pytest.mark.parametrize("method", ["get", "head"])
def test_an_image_tag_starts_nothing(accept, method):
    puppet = Puppet()
    with stage(puppet) as (app, _):
        response = app.test_client().open(f"{CHAT}?message=Hello", method=method, headers={"Accept": accept})
        assert response.status_code == 406
    assert puppet.calls == []


def test_head_opens_no_stream():
    puppet = Puppet()
    with stage(puppet) as (app, llm):
        response = app.test_client().head(f"{CHAT}?message=Hello", headers=EVENT_STREAM)
        assert response.status_code == 200 and response.mimetype == "text/event-stream"
        assert response.data == b"" and len(llm.record(app).open) == 0
    assert puppet.calls == []


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_a_foreign_page_starts_nothing(site):
    puppet = Puppet()
    with stage(puppet) as (app, _):
        assert get(app, **{"Sec-Fetch-Site": site}).status_code == 403
    assert puppet.calls == []


def test_it_is_a_stream_at_once(patient):
    pause = Pause()
    with stage(Puppet([pause, UpstreamRateLimited()])) as (app, _), get(app) as response:
        assert response.status_code == 200
        assert next(follow(response)) == {"status": "queued"}
        pause.go_on()
        assert list(follow(response))[-1]["problem"]["status"] == 429


def test_a_final_refusal_is_one_event_after_which_nothing_follows():
    with stage() as (app, _):
        (refusal,) = frames(get(app, "message=Hello&colour=blue"))
        said = json.loads(refusal.data)
        assert said["problem"]["status"] == 422 and set(said["problem"]["errors"]) == {"colour"}
        again = get(app, "message=Hello&colour=blue", **{"Last-Event-ID": refusal.id})
        assert (again.status_code, again.data) == (204, b"")


@pytest.mark.parametrize("query", ["messages={}", "message=Hello&temperature={}", "message=Hello&max_tokens={}"])
def test_what_is_nested_without_end_is_a_mistake_of_the_clients(query, caplog):
    with stage() as (app, _):
        (refusal,) = frames(get(app, query.format("[" * 3000)))
        assert json.loads(refusal.data)["problem"]["status"] == 422
        assert caplog.records == []


def test_a_passing_refusal_sends_it_away_for_a_while():
    """Without an id, and cut: an EventSource that got one, or a clean end with 503, would not come back."""
    pause = Pause()
    with stage(Puppet(["Hel", pause]), MAX_OPEN=1, JOIN_IDENTICAL=False) as (app, llm), ask(app) as first:
        for query in ("message=Hello", f"message=Hello&after={first.headers['Location'].rsplit('/', 1)[1]}:1-0"):
            with get(app, query) as response:
                assert response.status_code == 200
                chunks = iter(response.response)
                wait = re.fullmatch(rb"retry: (\d+)\n\n", next(chunks))
                assert 1000 <= int(wait[1]) <= 5000
                with pytest.raises(ConnectionResetError):
                    next(chunks)
        assert len(llm.record(app).open) == 1


def test_with_a_cursor_it_resumes_and_never_starts():
    puppet = Puppet()
    with stage(puppet) as (app, _):
        whole = frames(get(app))
        for at, event in enumerate(whole[:-1], 1):
            assert frames(get(app, **{"Last-Event-ID": event.id})) == whole[at:]
            assert frames(get(app, f"message=Hello&after={event.id}")) == whole[at:]
        assert get(app, **{"Last-Event-ID": whole[-1].id}).status_code == 204
        assert get(app, **{"Last-Event-ID": "nobody:1-1"}).status_code == 404
        assert get(app, **{"Last-Event-ID": whole[0].id, "X-User": "bob"}).status_code == 404
        assert get(app, **{"Last-Event-ID": "17"}).status_code == 400
    assert len(puppet.calls) == 1


def test_a_long_query_is_refused_by_a_status():
    with stage() as (app, _):
        assert problem(get(app, "message=" + "x" * 3500))["status"] == 414
