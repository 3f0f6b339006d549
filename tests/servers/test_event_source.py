"""The stream by GET, as an `EventSource` uses it: it sees neither status nor body of a refusal, and always comes back
after an end, so what it is told are events and a 204."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest

from flask_llmstream.testing import Gate, Schedule

HELLO = "/api/chat/stream?message=Hello"


def test_answer_begins_at_once(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(gates={"headers": gate})
    asked = time.monotonic()
    with server.get(HELLO) as answer:
        assert answer.status == 200
        assert answer.event() == {"status": "queued"}
        assert time.monotonic() - asked < 0.9  # a POST waits for a second to know its status
        gate.release()
        assert answer.text() == "Hello, world!"
    assert upstream.requests[0].body["messages"] == [{"role": "user", "content": "Hello"}]


def test_resumes_by_its_last_event_and_starts_nothing(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=4, gates={2: gate})
    path = HELLO.replace("chat/stream", "patient")
    with server.get(path) as answer:
        last = [answer.server_event("token") for _ in range(2)][-1]
        answer.leave_by_reset()
    with server.get(path, Last_Event_ID=last.id) as back:
        gate.release()
        assert back.text() == "w3 w4 "
    assert len(upstream.requests) == 1


def test_is_told_204_when_it_has_everything(server, upstream):
    with server.get(HELLO) as answer:
        last = answer.server_events()[-1].id
    for path in (HELLO, f"{answer.location}/events"):
        with server.get(path, Last_Event_ID=last) as back:
            assert back.status == 204
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("", "invalid-input"),
        ("?message=hi&max_tokens=many", "invalid-input"),
        ("?messages=" + quote("{"), "invalid-input"),
        ("?message=a&messages=[]", "invalid-input"),
        ("?message=hi&key=short", "invalid-idempotency-key"),
    ],
)
def test_final_refusal_is_one_event_after_which_nothing_follows(server, upstream, query, kind):
    path = "/api/chat/stream" + query
    with server.get(path) as answer:
        assert answer.status == 200
        refusal = answer.server_event("error")
        assert kind.encode() in refusal.data
        assert list(answer.events()) == []
        assert answer.ending == "end"
    with server.get(path, Last_Event_ID=refusal.id) as back:
        assert back.status == 204
    assert upstream.requests == []


def test_early_failure_of_the_model_is_an_event(server, upstream):
    upstream.schedule = Schedule(status=401)
    with server.get(HELLO) as answer:
        assert answer.status == 200
        last = answer.server_event("error")
    with server.get(HELLO, Last_Event_ID=last.id) as back:
        assert back.status == 204
    assert len(upstream.requests) == 1


def test_passing_refusal_sends_it_away_for_a_while(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    small = server.at("/small")
    with small.get(HELLO, X_User="a") as first, small.get(HELLO, X_User="b") as second:
        last = first.server_event("token").id
        assert second.token() == "w1 "
        for headers in ({"X_User": "c"}, {"X_User": "a", "Last_Event_ID": last}):
            with small.get(HELLO, **headers) as refused:
                assert refused.status == 200
                refused.read()
                assert refused.body.startswith(b"retry: ")
                assert 1000 <= int(refused.body.split()[1]) <= 6000
                assert b"id:" not in refused.body and b"data:" not in refused.body
                assert refused.ending == "reset"
        gate.release()
        assert first.text() == second.text() == "w2 w3 "
    assert len(upstream.requests) == 2


def test_needs_to_accept_an_event_stream(server, upstream):
    with server.get(HELLO, Accept="image/avif,image/webp,*/*;q=0.8") as image:
        assert image.status == 406
    assert upstream.requests == []


@pytest.mark.parametrize(
    "headers",
    [{"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "http://elsewhere.example"}],
    ids=["cross-site", "same-site", "origin"],
)
def test_foreign_page_starts_nothing(server, upstream, headers):
    with server.get(HELLO, **headers) as answer:
        assert answer.status == 403
    assert upstream.requests == []


def test_too_long_a_conversation_is_for_post(server):
    with server.get("/api/chat/stream?message=" + "a" * 3600) as answer:
        assert answer.status == 414
