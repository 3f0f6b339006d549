"""The files that came with a job: there for each attempt and for whoever hears of its end, and then gone."""

from io import BytesIO

import pytest
from marshmallow import Schema, fields

from flask_llmstream import run_ended
from flask_llmstream.errors import ConfigurationError, UpstreamUnavailable
from flask_llmstream.uploads import File
from tests.jobs.house import ending
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage


class Paper(Schema):
    paper = File(types=["text/plain"], required=True)


class Shelf(Schema):
    papers = fields.List(fields.Nested(Paper))


@pytest.fixture
def uploads(tmp_path):
    """Where files are kept."""
    return tmp_path / "uploads"


def send(client, content=b"Call me Ishmael."):
    """Have a paper read; returns where the run is."""
    response = client.post("/api/read", data={"paper": (BytesIO(content), "whale.txt")})
    assert response.status_code == 202, response.text
    return response.headers["Location"]


def kept(uploads):
    return sorted(path.name for path in uploads.iterdir()) if uploads.is_dir() else []


def test_each_attempt_has_them_and_the_application_when_it_is_told(house, soon, uploads):
    attempts, told = [], []

    def declare(llm):
        @llm.job("/api/read", input=Paper)
        def read(run):
            attempts.append(run.input["paper"].text())
            if run.attempt < 3:
                raise UpstreamUnavailable
            return attempts[-1]

    client = house.open(declare, UPLOADS=uploads)

    def ended(sender, run, **more):
        told.append((run.attempt, kept(uploads), run.input["paper"].text()))

    with run_ended.connected_to(ended):
        run = ending(client, send(client))
    assert (run["status"], run["attempt"], run["result"]) == ("completed", 3, "Call me Ishmael.")
    assert attempts == ["Call me Ishmael."] * 3
    [(attempt, there, text)] = told
    assert (attempt, len(there), text) == (3, 1, "Call me Ishmael.")
    eventually(lambda: kept(uploads) == [])


def test_they_are_kept_until_others_know_that_it_has_ended(workshop, uploads):
    """Another process may have to make another attempt until then."""
    pause = Pause()

    def declare(llm):
        @llm.job("/api/read", input=Paper)
        def read(run):
            return run.model.stream([{"role": "user", "content": run.input["paper"].text()}])

    client = workshop.open(declare, Puppet(["Yes", pause]), UPLOADS=uploads)
    url = send(client)
    assert pause.reached.wait(PATIENCE)
    [run] = workshop.performer.live
    with workshop.server.paused():
        pause.go_on()
        eventually(lambda: run.ended, timeout=2 * PATIENCE)
        assert run.ending["durable"] is False
        assert len(kept(uploads)) == 1
    assert ending(client, url)["status"] == "completed"
    eventually(lambda: kept(uploads) == [])


def test_one_whose_file_is_not_there_fails_and_the_log_says_where_it_should_be(workshop, uploads, caplog):
    def declare(llm):
        @llm.job("/api/read", input=Paper)
        def read(run):
            return run.input["paper"].text()

    client = workshop.open(declare, working=False, UPLOADS=uploads)
    url = send(client)
    [name] = kept(uploads)
    (uploads / name).unlink()
    with workshop.hands.at_work():
        run = ending(client, url)
    assert (run["status"], run["attempt"]) == ("failed", 1)
    assert run["error"]["type"].endswith(":feature-failed")
    assert "whale.txt" not in str(run["error"])
    assert f"'whale.txt' is not in {uploads}: do all processes share it?" in caplog.text


@pytest.mark.parametrize("kind", ["job", "reply", "stream"])
def test_a_file_below_the_top_of_a_schema_is_refused_where_it_is_declared(kind):
    more = {"max_tokens": 20} if kind == "reply" else {}
    with stage(Puppet()) as (_, llm), pytest.raises(ConfigurationError, match="a File stands at the top"):
        getattr(llm, kind)("/api/read", input=Shelf, **more)(lambda run: None)


def test_a_schema_that_contains_itself_is_searched_once():
    class Chapter(Schema):
        parts = fields.List(fields.Nested(lambda: Chapter()))
        title = fields.String()

    with stage(Puppet()) as (_, llm):
        llm.job("/api/read", input=Chapter)(lambda run: None)


def test_a_stream_takes_no_files():
    with stage(Puppet()) as (_, llm), pytest.raises(ConfigurationError, match="a stream takes no files"):
        llm.stream("/api/read", input=Paper)(lambda run: None)
