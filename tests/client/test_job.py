"""A job from its input to its result."""

from __future__ import annotations

import threading

import pytest

from tests.client.server import (
    HOLD,
    RESET,
    Pause,
    Wait,
    accepted,
    done,
    frame,
    nothing,
    opening,
    plain,
    problem,
    sse,
    status,
    token,
    unchanged,
)

pytestmark = pytest.mark.needs("chromium")

START = "POST /analyze"
STATUS = "GET /runs/r1"
EVENTS = "GET /runs/r1/events"
CANCEL = "POST /runs/r1/cancel"
WORK = (
    frame(1, {"status": "queued"}),
    frame(2, {"progress": 0.4, "message": "page 4"}),
    frame(3, {"token": "Hel"}),
    frame(4, {"data": {"page": 4}}),
    frame(5, {"token": "lo"}),
)


def following(*frames):
    return sse(opening(), *frames, location=None)


def keys_of(server):
    return {request.headers["idempotency-key"] for request in server.came(START)}


def test_gives_events_to_callbacks_iterator_and_end(page, server):
    server.will(START, accepted())
    server.will(EVENTS, following(*WORK, done(6, result={"pages": 9}, usage={"prompt_tokens": 4})))
    job = page.evaluate("jobOutcome(job('/analyze', {text: 'a'}))")
    assert [event for event in job["iterated"] if "upload" not in event] == [
        {"status": "queued"},
        {"progress": 0.4, "message": "page 4"},
        {"token": "Hel"},
        {"data": {"page": 4}},
        {"token": "lo"},
    ]
    assert job["iterated"] == [event for event, _ in job["events"]]
    assert job["told"] == [
        ["status", "queued"],
        ["progress", 0.4, "page 4"],
        ["token", "Hel"],
        ["data", {"page": 4}],
        ["token", "lo"],
    ]
    assert job["states"] == ["following", "completed"]
    assert (job["id"], job["location"], job["cursor"]) == ("r1", f"{server.url}/runs/r1", "r1:1-6")
    assert (job["status"], job["text"]) == ("completed", "Hello")
    assert job["progress"] == {"progress": 0.4, "message": "page 4"}
    end = job["end"]
    assert (end["result"], end["text"], end["cancelled"]) == ({"pages": 9}, "Hello", False)
    assert end["usage"] == {"prompt_tokens": 4}


def test_start_is_json_under_a_key(page, server):
    server.will(START, accepted())
    server.will(EVENTS, following(done(1)))
    job = page.evaluate("jobOutcome(job('/analyze', {text: 'a'}, {headers: {'X-Token': 't'}}))")
    request = server.came(START)[0]
    assert request.json == {"text": "a"}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == job["key"]
    assert [request.headers["x-token"] for request in server.requests] == ["t", "t"]


def test_upload_of_a_large_file_tells_how_much_has_gone_out(page, server):
    size = 12_000_000
    server.reading = lambda there: Pause(0.005)
    server.will(START, accepted())
    server.will(EVENTS, following(done(1)))
    job = page.evaluate(f"jobOutcome(job('/analyze', {{file: bytes({size}), pages: [1, 2]}}))")
    loaded = [loaded for loaded, _ in job["uploads"]]
    (total,) = {total for _, total in job["uploads"]}
    assert size < total < size + 1000
    assert loaded == sorted(loaded)
    assert len(set(loaded)) > 3, "it was told in the midst of it"
    assert loaded[-1] == total
    assert job["iterated"][-1] == {"upload": {"loaded": total, "total": total}}
    (name, filename, content), pages = server.came(START)[0].form
    assert (name, filename, len(content)) == ("file", "paper.txt", size)
    assert pages == ("pages", None, b"[1,2]")


def test_upload_that_is_cut_is_sent_again_under_its_key(page, server):
    cuts = []

    def cut_once(there):
        if there > 1_000_000 and not cuts:
            cuts.append(there)
            return RESET
        return Pause(0)

    server.reading = cut_once
    server.will(START, accepted())
    server.will(EVENTS, following(done(1)))
    job = page.evaluate("jobOutcome(job('/analyze', {file: bytes(5_000_000)}))")
    assert cuts
    assert job["state"] == "completed"
    assert keys_of(server) == {job["key"]}
    assert len(server.came(START)[0].form[0][2]) == 5_000_000


def test_start_that_got_no_answer_goes_out_again_under_its_key(page, server):
    """Chromium itself repeats a request on a kept connection that was reset, so the resets can't be counted."""
    good = threading.Event()
    server.always(START, lambda request: accepted() if good.is_set() else nothing(RESET))
    server.will(EVENTS, following(done(1)))
    page.evaluate("window.made = job('/analyze', {file: bytes(10)}), 0")
    server.wait_for(START, 3)
    good.set()
    job = page.evaluate("jobOutcome(made)")
    assert job["state"] == "completed"
    assert keys_of(server) == {job["key"]}


@pytest.mark.parametrize(
    "refusal",
    [problem(429, "limit-reached", retry_after=0.1), problem(503, "overloaded", retry_after=0.1)],
    ids=["limit", "overloaded"],
)
def test_refusal_that_passes_is_followed_by_another_attempt_under_its_key(page, server, refusal):
    server.will(START, refusal, refusal, accepted())
    server.will(EVENTS, following(done(1)))
    job = page.evaluate("jobOutcome(job('/analyze', {text: 'a'}))")
    assert (len(server.came(START)), keys_of(server)) == (3, {job["key"]})


@pytest.mark.parametrize("refusal", [problem(413, "content-too-large"), problem(429, "limit-reached")])
def test_refusal_that_stays_surfaces_at_once(page, server, refusal):
    server.will(START, refusal)
    job = page.evaluate("jobOutcome(job('/analyze', {text: 'a'}))")
    assert (job["error"]["status"], job["thrown"]) == (refusal.status, "ProblemError")
    assert (job["state"], job["status"], job["location"]) == ("failed", None, None)


def test_job_that_failed(page, server):
    said = {"type": "urn:x", "title": "T", "status": 500, "detail": "Broken page."}
    server.will(START, accepted())
    server.will(EVENTS, following(token(1, "Hel"), frame(2, {"error": "Broken page.", "problem": said})))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert (job["state"], job["status"], job["text"]) == ("failed", "failed", "Hel")
    assert job["error"]["problem"] == said


def test_job_that_was_cut_is_incomplete(page, server):
    server.will(START, accepted())
    server.will(EVENTS, following(done(1, finish_reason="length")))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert (job["state"], job["status"], job["end"]["finishReason"]) == ("completed", "incomplete", "length")


def test_restart_voids_the_text(page, server):
    again = [frame(1, {"restarted": 2}, epoch=2), token(2, "Hi", epoch=2), done(3, epoch=2)]
    server.will(START, accepted())
    server.will(EVENTS, following(token(1, "Hel"), *again))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert job["text"] == job["end"]["text"] == "Hi"
    assert job["told"] == [["token", "Hel"], ["restart", 2], ["token", "Hi"]]


def test_large_result_is_fetched(page, server):
    server.will(START, accepted())
    server.will(EVENTS, following(token(1, "Hel"), done(2, result_size=70_000)))
    server.will(STATUS, plain(502), status(status="in_progress"), status(status="completed", result=["x"] * 20))
    end = page.evaluate("jobOutcome(job('/analyze'))")["end"]
    assert (end["result"], end["result_size"], end["tokens"]) == (["x"] * 20, 70_000, 1)


def test_large_result_of_a_stream_is_fetched_too(page, server):
    server.will("POST /chat", sse(opening(), token(1, "Hi"), done(2, result_size=70_000)))
    server.will(STATUS, status(status="completed", result=["x"]))
    assert page.evaluate("outcome(stream('/chat'))")["end"]["result"] == ["x"]


def test_done_by_the_time_of_the_answer(page, server):
    """The repeat of a start joins the job, which may have ended by then."""
    server.will(START, accepted(200, status="completed", text="Hi", result=[1]))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert (job["state"], job["end"]["result"], job["end"]["text"]) == ("completed", [1], "Hi")


def test_dropped_events_go_on_behind_the_cursor(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), *WORK[:3], RESET, location=None))
    server.always(EVENTS, lambda request: following(*WORK[int(request.query.get("after", "0")[-1]) :], done(6)))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert (job["text"], job["state"]) == ("Hello", "completed")
    assert job["states"] == ["following", "reconnecting", "following", "completed"]


def test_status_is_asked_for_where_events_do_not_get_through(page, server):
    server.will(START, accepted())
    server.always(EVENTS, lambda request: plain(502, b"<h1>Bad gateway</h1>", "text/html"))
    server.will(
        STATUS, status('"1"', status="in_progress", text="Hel"), status('"2"', status="completed", text="Hello")
    )
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert (job["text"], job["state"]) == ("Hello", "completed")
    assert job["told"] == [["status", "in_progress"], ["token", "Hel"], ["token", "lo"]]


def test_status_goes_on_where_the_events_left_off(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), *WORK[:3], location=None))
    server.always(EVENTS, lambda request: plain(404, b"<h1>Not found</h1>", "text/html"))
    more = {"status": "in_progress", "progress": {"progress": 0.4, "message": "page 4"}, "text": "Hello"}
    server.will(STATUS, status(**more), status(**more | {"status": "completed"}))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert job["told"] == [
        ["status", "queued"],
        ["progress", 0.4, "page 4"],
        ["token", "Hel"],
        ["token", "lo"],
    ]


def test_proxy_that_keeps_the_events_to_itself(page, server):
    server.will(START, accepted())
    server.always(EVENTS, lambda request: sse(HOLD, location=None))
    server.will(STATUS, status(status="completed", result=[1]))
    job = page.evaluate("jobOutcome(job('/analyze'))")
    assert job["end"]["result"] == [1]
    assert len(server.came(EVENTS)) == 3


def test_follows_by_the_status_alone(page, server):
    """What has not changed is not sent again: the second question waits for news, and the fourth finds none."""
    server.will(START, accepted())
    server.will(
        STATUS,
        status('"1"'),
        status('"2"', status="in_progress", progress={"progress": 0.5, "message": None}),
        unchanged('"2"'),
        status('"3"', status="in_progress", progress={"progress": 0.5, "message": None}, text="Hel", n=7),
        status('"4"', status="completed", text="Hello", result=[1], n=9),
    )
    job = page.evaluate("jobOutcome(job('/analyze', {}, {follow: 'poll'}))")
    assert job["told"] == [
        ["status", "queued"],
        ["status", "in_progress"],
        ["progress", 0.5, None],
        ["token", "Hel"],
        ["token", "lo"],
    ]
    assert (job["end"]["result"], job["cursor"]) == ([1], "r1:1-9")
    asked = server.came(STATUS)
    assert [request.headers.get("if-none-match") for request in asked] == [None, '"1"', '"2"', '"2"', '"3"']
    assert [request.query for request in asked] == [{}, *[{"wait": "20"}] * 4]
    assert server.came(EVENTS) == []


def test_polls_as_often_as_it_is_told(page, server):
    server.will(START, accepted())
    server.will(STATUS, status(retry_after="1"), status(status="completed"))
    page.evaluate("jobOutcome(job('/analyze', {}, {follow: 'poll'}))")
    first, second = server.came(STATUS)
    assert 1 <= second.at - first.at < 2.5


def test_polls_again_after_a_drop_and_no_longer_asks_to_be_kept_waiting(page, server):
    server.will(START, accepted())
    server.will(STATUS, status('"1"'), plain(504, b"<h1>Gateway time-out</h1>", "text/html"), unchanged('"1"'))
    server.will(STATUS, status('"2"', status="completed"))
    job = page.evaluate("jobOutcome(job('/analyze', {}, {follow: 'poll'}))")
    assert job["states"] == ["following", "reconnecting", "following", "completed"]
    assert [request.query for request in server.came(STATUS)] == [{}, {"wait": "20"}, {}, {}]


def test_restart_as_the_status_tells_it(page, server):
    server.will(START, accepted())
    server.will(
        STATUS,
        status(status="in_progress", text="Hel"),
        status(status="queued", attempt=2),
        status(status="completed", attempt=2, text="Hi"),
    )
    job = page.evaluate("jobOutcome(job('/analyze', {}, {follow: 'poll'}))")
    assert job["told"][2:] == [["token", "Hel"], ["restart", 2], ["token", "Hi"]]
    assert job["end"]["text"] == "Hi"


def test_failure_as_the_status_tells_it(page, server):
    said = {"type": "urn:x", "status": 504, "detail": "Too slow."}
    server.will(START, accepted())
    server.will(STATUS, status(status="failed", error=said))
    job = page.evaluate("jobOutcome(job('/analyze', {}, {follow: 'poll'}))")
    assert (job["state"], job["status"], job["error"]["message"]) == ("failed", "failed", "Too slow.")


def test_status_of_the_features_own_path(page, server):
    """The run's links say where its events are, and where it is stopped."""
    stopped = threading.Event()
    server.will(START, accepted(location="/analyze/r1"))
    server.will(EVENTS, sse(opening(), Wait(stopped), done(1, cancelled=True), location=None))
    server.always(CANCEL, lambda request: stopped.set() or plain(200, b"{}"))
    page.evaluate("window.made = job('/analyze'), until(() => made.location)")
    assert page.evaluate("made.stop().then(() => made.location)") == f"{server.url}/analyze/r1"
    assert page.evaluate("made.id") == "r1"


def test_same_input_while_one_is_open_shares_its_key(page, server):
    server.will(START, *[accepted()] * 3)
    go_on = threading.Event()
    server.always(EVENTS, lambda request: sse(opening(), Wait(go_on), done(1), location=None))
    page.evaluate("window.all = ['a', 'a', 'b'].map((name) => job('/analyze', {file: bytes(3, name)})), 0")
    server.wait_for(EVENTS, 3)
    go_on.set()
    first, second, third = page.evaluate("Promise.all(all.map(jobOutcome))")
    assert first["key"] == second["key"] != third["key"]


def test_earlier_job_is_followed_from_its_status(page, server):
    server.will(STATUS, status(status="completed", text="Hi", result=[1]))
    job = page.evaluate("jobOutcome(followJob('/runs/r1'))")
    assert (job["end"]["result"], job["text"], job["key"]) == ([1], "Hi", None)
    assert job["told"] == [["token", "Hi"]]


def test_live_job_is_followed_from_a_cursor(page, server):
    server.will(STATUS, status(status="in_progress", text="Hello"))
    server.will(EVENTS, sse(opening(3), *WORK[3:], done(6), location=None))
    job = page.evaluate("jobOutcome(followJob('/runs/r1', {after: 'r1:1-3', text: 'Hel'}))")
    assert (job["text"], job["told"]) == ("Hello", [["data", {"page": 4}], ["token", "lo"]])
    assert server.came(EVENTS)[0].query == {"after": "r1:1-3"}


def test_job_that_is_no_longer_there(page, server):
    server.will(STATUS, problem(404, "run-not-found"))
    assert page.evaluate("jobOutcome(followJob('/runs/r1'))")["error"]["status"] == 404


def test_status_that_is_cut_is_asked_for_again(page, server):
    cut = status(status="in_progress")
    cut.steps = (cut.steps[0][:-9], RESET)
    server.will(STATUS, cut, status(status="completed", result=[1]))
    assert page.evaluate("jobOutcome(followJob('/runs/r1'))")["end"]["result"] == [1]


def test_status_of_another_protocol(page, server):
    server.will(STATUS, plain(200, b"<p>Sign in", "text/html"))
    assert page.evaluate("jobOutcome(followJob('/runs/r1'))")["error"]["name"] == "ProtocolError"


@pytest.mark.parametrize("answer", [plain(200, b"<p>Sign in", "text/html"), plain(202, b"{}")], ids=["page", "no run"])
def test_answer_of_another_protocol(page, server, answer):
    server.will(START, answer)
    assert page.evaluate("jobOutcome(job('/analyze'))")["error"]["name"] == "ProtocolError"
