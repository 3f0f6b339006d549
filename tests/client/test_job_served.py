"""Jobs and replies of a real application."""

from __future__ import annotations

import re
import threading

import pytest
from flask import Response
from marshmallow import Schema, fields

from flask_llmstream import Data, LLMStream, Progress
from flask_llmstream.uploads import File
from tests.client.conftest import opened
from tests.client.server import PAGE
from tests.conversation import instant, new_app
from tests.puppet import eventually
from tests.recipes.conftest import served

pytestmark = pytest.mark.needs("chromium")

BEGIN = """async () => {
    const file = new File(['a '.repeat(1_000_000)], 'paper.txt', {type: 'text/plain'});
    window.made = job('/api/analyze/start', {file, words: ['a']}, options);
    await until(() => made.text || made.state === 'failed');
    if (made.state === 'failed') throw await made.done.catch((error) => error);
}"""


class Paper(Schema):
    file = File(types=["text/plain"], max_size=10_000_000, required=True)
    words = fields.List(fields.String(), load_default=list)


class Remark(Schema):
    text = fields.String(required=True)


class Office:
    """An application with a job that goes on when it is told, and a reply.

    :param url: where it is, without a slash at the end.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.url = ""
        self.app = new_app()
        self.llm = llm = LLMStream(self.app, model=instant())

        @self.app.get("/")
        def page():
            return Response(PAGE.read_text(), mimetype="text/html")

        @llm.job("/api/analyze/start", input=Paper, status="/api/analyze/<run_id>")
        def analyze(run):
            yield Progress(0.5, "half")
            yield "Read."
            yield Data({"part": 1})
            while not self.go_on.wait(0.02):
                yield Progress(0.5, "half")
            return {"size": run.input["file"].size, "words": run.input["words"], "text": "x" * 100_000}

        @llm.reply("/api/remark", input=Remark, max_tokens=10)
        def remark(run):
            yield f"You said: {run.input['text']}"


@pytest.fixture
def office(blank):
    office = Office()
    with served(office.app) as office.url:
        opened(blank, office.url)
        yield office
        office.go_on.set()
        blank.goto("about:blank")
        office.llm.record(office.app).close()


@pytest.fixture
def page(blank, office):
    blank.evaluate("window.options = {remember: 'paper'}, 0")
    return blank


def listed(page):
    """The status of each job, the newest first."""
    runs = page.evaluate("fetch('/api/runs?feature=analyze').then((response) => response.json())")
    return [run["status"] for run in runs["data"]]


def test_file_becomes_a_large_result(page, office):
    page.evaluate(BEGIN)
    office.go_on.set()
    job = page.evaluate("jobOutcome(made)")
    result = job["end"]["result"]
    assert (result["size"], result["words"], len(result["text"])) == (2_000_000, ["a"], 100_000)
    assert job["end"]["result_size"] > 100_000
    assert job["uploads"][-1][0] > 2_000_000
    assert ["progress", 0.5, "half"] in job["told"]
    assert ["data", {"part": 1}] in job["told"]
    assert (job["text"], job["status"]) == ("Read.", "completed")
    assert re.fullmatch(rf"{office.url}/api/analyze/[\w-]+", job["location"])


def test_follows_by_the_status(page, office):
    page.evaluate("options.follow = 'poll'")
    page.evaluate(BEGIN)
    office.go_on.set()
    job = page.evaluate("jobOutcome(made)")
    assert (job["text"], len(job["end"]["result"]["text"])) == ("Read.", 100_000)


def test_events_that_do_not_get_through(page, office):
    page.route("**/events*", lambda route: route.abort())
    page.evaluate(BEGIN)
    office.go_on.set()
    assert page.evaluate("jobOutcome(made)")["end"]["result"]["size"] == 2_000_000


def test_reload_in_the_midst_of_it(page, office):
    page.evaluate(BEGIN)
    opened(page, office.url)
    page.evaluate("window.made = recallJob('paper'), until(() => made.text)")
    office.go_on.set()
    job = page.evaluate("jobOutcome(made)")
    assert (job["end"]["result"]["size"], job["text"]) == (2_000_000, "Read.")
    assert listed(page) == ["completed"]


@pytest.mark.parametrize("follow", ["events", "poll"])
def test_stop(page, office, follow):
    page.evaluate(f"options.follow = '{follow}'")
    page.evaluate(BEGIN)
    page.evaluate("made.stop()")
    job = page.evaluate("jobOutcome(made)")
    assert (job["state"], job["status"], job["text"]) == ("stopped", "cancelled", "Read.")
    eventually(lambda: listed(page) == ["cancelled"])


def test_file_that_is_refused(page, office):
    page.evaluate("window.wrong = new File([new Uint8Array([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10])], 'a.png')")
    error = page.evaluate("jobOutcome(job('/api/analyze/start', {file: wrong}))")["error"]
    assert error["name"] == "ProblemError"
    assert error["status"] in (415, 422)


def test_reply(page, office):
    assert page.evaluate("llm.reply('/api/remark', {text: 'Hi'})") == {"text": "You said: Hi"}
    error = page.evaluate("reply('/api/remark', {})")["error"]
    assert (error["status"], list(error["problem"]["errors"])) == (422, ["text"])
