"""The server's log has what went wrong and no secret; the client has neither. What is normal is not in it."""

from __future__ import annotations

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.client import Answer
from tests.servers.serving import KEY, TROUBLE

SAID = "no quota left for tenant 4711 with key " + KEY


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_log_has_the_models_words_without_the_key_and_the_client_nothing(server, upstream, late):
    error = {"message": SAID, "type": "server_error", "code": None}
    upstream.schedule = (
        Schedule(tokens=3, error_after=1, error=error) if late else Schedule(status=500, body={"error": error})
    )
    with server.post() as answer:
        answer.read()
    assert b"upstream-unavailable" in answer.body
    assert b"4711" not in answer.body
    assert KEY.encode() not in answer.body
    log = server.await_news("tenant 4711")
    assert KEY not in log
    assert "with key [key]" in log


def test_servers_that_repeat_a_refused_key_do_not_get_it_into_the_log(server, upstream):
    upstream.key = "another"
    try:
        with server.post() as answer:
            assert answer.status == 502
            assert KEY.encode() not in answer.read()
    finally:
        upstream.key = KEY
    log = server.await_news("Incorrect API key provided")
    assert KEY not in log


@pytest.mark.parametrize(
    "leave", [Answer.leave, Answer.leave_by_fin, Answer.leave_by_reset], ids=["unread", "fin", "reset"]
)
def test_leaving_is_nothing_to_complain_of(server, upstream, leave):
    gate = Gate()
    upstream.schedule = Schedule(tokens=50, gates={3: gate})
    with server.post("/api/endless") as answer:
        if leave is not Answer.leave:
            assert answer.token() == "w1 "
        upstream.wait_for(lambda upstream: upstream.requests and upstream.requests[0].tokens_sent == 3)
        leave(answer)
        gate.release()
    server.await_state(open=0, live=0)
    log = server.news()
    assert not TROUBLE.search(log), log
    assert "WARNING" not in log
