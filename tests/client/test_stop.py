"""Stop, at every moment of a run: the run itself ends, and not just the reading."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from tests.client.server import HOLD, RESET, Wait, done, nothing, opening, plain, problem, sse, token

pytestmark = pytest.mark.needs("chromium")

CANCEL = "POST /runs/r1/cancel"
TAIL = "GET /runs/r1/events"


@pytest.fixture
def cancelled():
    return threading.Event()


def taken_by(event):
    """A rule that takes a cancellation and lets the answers that wait for it go on."""

    def rule(request):
        event.set()
        return plain(200, b'{"status": "cancelled"}')

    return rule


def test_while_it_streams(page, server, cancelled):
    ends = done(2, cancelled=True, finish_reason=None, usage={"prompt_tokens": 4, "estimated": True})
    server.will("POST /chat", sse(opening(), token(1, "Hel"), Wait(cancelled), ends))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat', {}, {headers: {'X-Token': 't'}}), until(() => run.text === 'Hel')")
    page.evaluate("run.stop()")
    run = page.evaluate("outcome(run)")
    assert (run["state"], run["text"], run["thrown"]) == ("stopped", "Hel", None)
    assert run["end"]["cancelled"] is True
    assert run["end"]["usage"]["estimated"] is True
    assert server.came(CANCEL)[0].headers["x-token"] == "t"


def test_twice_is_once(page, server, cancelled):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), Wait(cancelled), done(2, cancelled=True)))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat'), until(() => run.text)")
    page.evaluate("Promise.all([run.stop(), run.stop()]).then(() => run.stop())")
    assert len(server.came(CANCEL)) == 1


def test_before_anything_was_sent_nothing_is(page, server):
    run = page.evaluate("""async () => {
        const run = stream('/chat');
        await run.stop();
        return outcome(run);
    }""")
    assert (run["state"], run["end"]["cancelled"], run["end"]["tokens"]) == ("stopped", True, None)
    assert server.requests == []


def test_before_the_answer_began(page, server, cancelled):
    """The run's URL is not known yet: it is stopped as soon as it is."""
    begin = threading.Event()
    ends = sse(opening(), Wait(cancelled), done(1, cancelled=True), before=(Wait(begin),))
    server.will("POST /chat", ends)
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat'), 0")
    server.wait_for("POST /chat")
    page.evaluate("window.stopping = run.stop(), 0")
    begin.set()
    page.evaluate("stopping")
    assert len(server.came(CANCEL)) == 1
    assert page.evaluate("outcome(run)")["state"] == "stopped"


def test_when_the_start_may_or_may_not_have_arrived(page, server, cancelled):
    """Only a start under the same key can tell which run it was."""
    begun = sse(opening(), Wait(cancelled), done(1, cancelled=True))
    good = threading.Event()
    server.always("POST /chat", lambda request: begun if good.is_set() else nothing(RESET))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat'), until(() => run.state === 'reconnecting')")
    good.set()
    page.evaluate("run.stop()")
    assert cancelled.is_set()
    assert len({request.headers["idempotency-key"] for request in server.came("POST /chat")}) == 1


@pytest.mark.parametrize(
    "answer", [problem(429, "rate-limited"), problem(503, "overloaded", retry_after=50)], ids=["for good", "for now"]
)
def test_of_a_start_that_is_refused(page, server, answer):
    begin = threading.Event()
    answer.before = (Wait(begin),)
    server.will("POST /chat", answer)
    page.evaluate("window.run = stream('/chat'), 0")
    server.wait_for("POST /chat")
    page.evaluate("window.stopping = run.stop(), 0")
    since = monotonic()
    begin.set()
    page.evaluate("stopping")
    assert page.evaluate("outcome(run)")["state"] == "stopped"
    assert monotonic() - since < 25, "it waited for the server first"


def test_while_waiting_for_an_overloaded_server(page, server):
    server.will("POST /chat", problem(503, "overloaded", retry_after=50))
    page.evaluate("window.run = stream('/chat'), 0")
    server.wait_for("POST /chat").answered.wait()
    since = monotonic()
    page.evaluate("moment(200).then(() => run.stop())")
    assert page.evaluate("outcome(run)")["state"] == "stopped"
    assert monotonic() - since < 25, "it waited for the server first"


def test_while_reconnecting(page, server, cancelled):
    server.will("POST /chat", sse(opening(retry=600_000), token(1, "Hel")))
    server.will(TAIL, sse(opening(1), Wait(cancelled), done(2, cancelled=True, usage={"prompt_tokens": 4})))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat'), until(() => run.state === 'reconnecting')")
    page.evaluate("run.stop()")
    run = page.evaluate("outcome(run)")
    assert (run["state"], run["end"]["usage"]) == ("stopped", {"prompt_tokens": 4})


def test_does_not_wait_long_for_a_line_that_is_dead(page, server):
    """The server has taken the stop; its terminal event does not get here."""
    server.will("POST /chat", sse(opening(), token(1, "Hel"), HOLD))
    server.will(CANCEL, plain(200, b"{}"))
    page.evaluate("window.run = stream('/chat'), until(() => run.text)")
    page.evaluate("run.stop()")
    run = page.evaluate("outcome(run)")
    assert (run["state"], run["text"], run["end"]["cancelled"]) == ("stopped", "Hel", True)
    assert server.requests[0].answered.wait(10), "the client kept the connection"


def test_is_repeated_until_the_server_has_it(page, server, cancelled):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), Wait(cancelled), done(2, cancelled=True)))
    server.will(CANCEL, nothing(RESET), plain(502), problem(503, "overloaded", retry_after=0.01))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat'), until(() => run.text)")
    page.evaluate("run.stop()")
    assert cancelled.is_set()


@pytest.mark.parametrize("status", [204, 404, 410])
def test_of_a_run_that_is_gone(page, server, status):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), HOLD))
    server.will(CANCEL, plain(status) if status == 204 else problem(status, "gone"))
    page.evaluate("window.run = stream('/chat'), until(() => run.text)")
    page.evaluate("run.stop()")
    assert page.evaluate("outcome(run)")["state"] == "stopped"


def test_that_comes_too_late(page, server, cancelled):
    server.will("POST /chat", sse(opening(), token(1, "Hi"), Wait(cancelled), done(2)))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = stream('/chat'), until(() => run.text)")
    page.evaluate("run.stop()")
    run = page.evaluate("outcome(run)")
    assert (run["state"], run["end"]["cancelled"]) == ("completed", False)
    page.evaluate("run.stop()")


@pytest.mark.parametrize(
    ("answer", "name"),
    [(problem(403, "origin-refused"), "ProblemError"), (nothing(RESET), "ConnectionLostError")],
    ids=["refused", "unreachable"],
)
def test_that_the_server_does_not_take_says_so_and_reads_no_more(page, server, answer, name):
    server.will("POST /chat", sse(opening(retry=1), token(1, "Hel"), HOLD))
    server.always(CANCEL, lambda request: answer)
    page.evaluate("window.run = stream('/chat', {}, {retries: 1}), until(() => run.text)")
    assert page.evaluate("run.stop().catch((error) => error.name)") == name
    run = page.evaluate("outcome(run)")
    assert (run["state"], run["end"]["cancelled"]) == ("stopped", True)
    assert server.requests[0].answered.wait(10), "the client kept the connection"


def test_where_the_start_never_got_through_says_so(page, server):
    server.always("POST /chat", lambda request: nothing(RESET))
    page.evaluate("window.run = stream('/chat', {}, {retries: 1}), until(() => run.state === 'reconnecting')")
    assert page.evaluate("run.stop().catch((error) => error.name)") == "ConnectionLostError"
    assert page.evaluate("outcome(run)")["state"] == "stopped"


def test_by_abort_signal(page, server, cancelled):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), Wait(cancelled), done(2, cancelled=True)))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("""() => {
        window.controller = new AbortController();
        window.run = stream('/chat', {}, {signal: controller.signal});
        return until(() => run.text);
    }""")
    page.evaluate("controller.abort()")
    run = page.evaluate("outcome(run)")
    assert (run["state"], run["end"]["cancelled"], run["thrown"]) == ("stopped", True, None)


def test_by_a_signal_that_was_aborted_before(page, server):
    run = page.evaluate("outcome(stream('/chat', {}, {signal: AbortSignal.abort()}))")
    assert run["state"] == "stopped"
    assert server.requests == []


def test_of_a_run_that_was_resumed(page, server, cancelled):
    server.will(TAIL, sse(opening(3), Wait(cancelled), done(4, cancelled=True)))
    server.always(CANCEL, taken_by(cancelled))
    page.evaluate("window.run = resume('/runs/r1', {after: 'r1:1-3'}), 0")
    server.wait_for(TAIL)
    page.evaluate("run.stop()")
    assert page.evaluate("outcome(run)")["state"] == "stopped"


def test_from_within_a_callback(page, server, cancelled):
    server.will("POST /chat", sse(opening(), token(1, "a") + token(2, "b"), Wait(cancelled), done(3, cancelled=True)))
    server.always(CANCEL, taken_by(cancelled))
    run = page.evaluate("outcome(window.run = stream('/chat', {}, {onToken: () => { run.stop(); }}))")
    assert (run["state"], run["text"]) == ("stopped", "ab")
