"""The status of a run: what it tells, and how a client waits for news by polling."""

import threading
import time

import pytest

from flask_llmstream import run_ended
from flask_llmstream.errors import UpstreamForbidden
from tests.conversation import ask, events, problem
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage


def run_at(client, url):
    """The run itself."""
    return client.application.extensions["llmstream"]["llmstream"].registry.find(url.rsplit("/", 1)[1], None)


def test_the_status_of_a_run_that_goes_on(live):
    client, url = live
    response = client.get(url)
    assert response.status_code == 200
    assert response.headers["Retry-After"] == "2"
    assert response.headers["Cache-Control"] == "no-store"
    run = response.json
    assert run["id"] == url.rsplit("/", 1)[1]
    assert (run["object"], run["feature"], run["status"], run["attempt"]) == ("run", "chat", "in_progress", 1)
    assert (run["text"], run["cursor"]) == ("Hel", f"{run['id']}:1-4")
    assert run["created_at"] <= run["started_at"] <= time.time()
    for unknown in ("ended_at", "expires_at", "finish_reason", "result", "error", "usage"):
        assert run[unknown] is None
    assert run["links"] == {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel"}


def test_the_status_of_a_run_that_has_ended(ended):
    client, url = ended
    response = client.get(url)
    assert "Retry-After" not in response.headers
    run = response.json
    assert (run["status"], run["finish_reason"], run["text"]) == ("completed", "stop", "Hello")
    assert run["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert run["expires_at"] == pytest.approx(run["ended_at"] + 600)
    assert run["error"] is None


def test_the_status_tells_a_result_and_an_error():
    with stage(Puppet(["Hel", UpstreamForbidden(diagnosis="sk-secret")])) as (app, llm):

        @llm.stream("/count")
        def count(run):
            yield "1"
            return {"count": 1}

        client = app.test_client()
        counted = ask(client, "/count")
        events(counted)
        assert client.get(counted.headers["Location"]).json["result"] == {"count": 1}
        failed = ask(client)
        heard = events(failed)
        response = client.get(failed.headers["Location"])
        assert (response.json["status"], response.json["error"]) == ("failed", heard[-1]["problem"])
        assert response.json["text"] == "Hel" and "sk-secret" not in response.text


# Conditional requests (RFC 9110, 13.1.2)


def test_a_client_that_knows_it_all_is_told_so(live, pause):
    client, url = live
    tag = client.get(url).headers["ETag"]
    again = client.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    pause.go_on()
    eventually(lambda: client.get(url).json["status"] == "completed")
    news = client.get(url, headers={"If-None-Match": tag})
    assert news.status_code == 200 and news.headers["ETag"] != tag
    assert client.get(url, headers={"If-None-Match": news.headers["ETag"]}).status_code == 304


def test_each_event_changes_the_tag(live, pause):
    client, url = live
    tags = {client.get(url).headers["ETag"] for _ in range(3)}
    assert len(tags) == 1
    pause.go_on()
    eventually(lambda: client.get(url).headers["ETag"] not in tags)


@pytest.mark.parametrize(
    "spelling", ["{tag}", "{strong}", '"other", {tag}', 'W/"other",{strong}, "another"', "*"], ids=str
)
def test_a_tag_may_be_spelled_in_every_way_that_http_has(ended, spelling):
    client, url = ended
    tag = client.get(url).headers["ETag"]
    known = spelling.format(tag=tag, strong=tag.removeprefix("W/"))
    assert client.get(url, headers={"If-None-Match": known}).status_code == 304


@pytest.mark.parametrize("spelling", ['"other"', 'W/"other", "another"', "{bare}"], ids=str)
def test_any_other_tag_is_none_that_it_has(ended, spelling):
    client, url = ended
    bare = client.get(url).headers["ETag"].removeprefix("W/").strip('"')
    assert client.get(url, headers={"If-None-Match": spelling.format(bare=bare[:-1])}).status_code == 200


def test_no_news_has_the_headers_that_news_would_have(ended):
    """RFC 9110, 15.4.5: a cache updates what it has by them."""
    client, url = ended
    whole = client.get(url)
    unchanged = client.get(url, headers={"If-None-Match": whole.headers["ETag"]})
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    for name in ("ETag", "Cache-Control"):
        assert unchanged.headers[name] == whole.headers[name]


# Waiting


@pytest.mark.parametrize("wait", ["-1", "30.1", "nan", "inf", "-inf", "soon", "", "1s"])
def test_a_wait_that_is_none_is_refused(ended, wait):
    client, url = ended
    assert problem(client.get(url, query_string={"wait": wait}))["status"] == 400


@pytest.mark.parametrize("wait", ["0", "7.5", "30", "3e1"])
def test_a_run_that_has_ended_is_not_waited_for(ended, wait):
    client, url = ended
    begun = time.monotonic()
    assert client.get(url, query_string={"wait": wait}).json["status"] == "completed"
    assert time.monotonic() - begun < PATIENCE


def test_a_wait_ends_when_its_time_is_over(live):
    client, url = live
    begun = time.monotonic()
    assert client.get(f"{url}?wait=0.05").json["status"] == "in_progress"
    assert time.monotonic() - begun >= 0.05


@pytest.fixture
def waiting(live):
    """Waits for a run in another thread; returns what it was told once it was."""

    def wait(**headers):
        client, url = live
        told = []

        def ask_for_it():
            told.append(client.application.test_client().get(f"{url}?wait=30", headers=headers))

        thread = threading.Thread(target=ask_for_it)
        run = run_at(client, url)
        thread.start()
        eventually(lambda: run.log.readers == 2)

        def answer():
            thread.join(PATIENCE)
            assert told, "the wait did not end"
            assert run.log.readers == 1
            return told[0]

        return answer

    return wait


def test_a_wait_ends_with_the_run(waiting, pause):
    answer = waiting()
    pause.go_on()
    assert answer().json["status"] == "completed"


def test_with_a_tag_a_wait_ends_with_any_news(live, waiting, pause):
    client, url = live
    answer = waiting(**{"If-None-Match": client.get(url).headers["ETag"]})
    pause.go_on()
    response = answer()
    assert response.status_code == 200
    assert response.json["text"] == "Hello" or response.json["status"] == "in_progress"


def test_with_an_old_tag_there_is_no_wait(live):
    client, url = live
    begun = time.monotonic()
    assert client.get(f"{url}?wait=30", headers={"If-None-Match": 'W/"queued-1-1"'}).status_code == 200
    assert time.monotonic() - begun < PATIENCE


def test_whoever_polls_keeps_the_run_going():
    """Each poll gives it the whole grace time anew."""
    with stage(Puppet(["Hel", Pause()]), ORPHAN_GRACE=3600) as (app, llm):
        client = app.test_client()
        with ask(client) as response:
            url = response.headers["Location"]
        (run,) = llm.record(app).registry.live
        for query in ("", "?wait=0.01"):
            timer = run.audience._timer
            assert timer.action is not None
            assert client.get(url + query).json["status"] == "in_progress"
            assert timer.action is None and run.audience._timer.action is not None
        run.audience._timer.action()
        eventually(lambda: run.ended)
        assert run.state == "cancelled"


def test_a_run_whose_end_is_being_told_has_not_ended_yet():
    """All that is said of an end comes with it, or a client would see half of one."""
    seen = []

    def look(sender, run, **_):
        seen.append(sender.test_client().get(f"/api/runs/{run.id}").json)

    with stage() as (app, _), run_ended.connected_to(look, sender=app):
        answer = ask(app.test_client())
        events(answer)
    (run,) = seen
    assert run["status"] == "in_progress"
    assert (run["ended_at"], run["expires_at"], run["finish_reason"], run["result"]) == (None, None, None, None)
