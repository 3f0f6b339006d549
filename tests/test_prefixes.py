"""Several `LLMStream`s in one application, each under a prefix of its own."""

from __future__ import annotations

import pytest

from flask_llmstream import LLMStream
from tests.conversation import ask, instant, new_app, problem, text
from tests.puppet import PATIENCE, Pause, Puppet


@pytest.mark.parametrize("prefix", ["/internal", "/api/internal", "/v1.0"])
def test_an_application_may_have_several_under_different_prefixes(prefix):
    app = new_app()
    LLMStream(app, model=instant())
    internal = LLMStream(app, model=instant(), url_prefix=prefix)

    @internal.stream(f"{prefix}/greet")
    def greet(run):
        yield "Good morning, colleague"

    client = app.test_client()
    public, colleague = ask(client), ask(client, f"{prefix}/greet")
    assert text(public) == "Hello, you"
    assert text(colleague) == "Good morning, colleague"
    run = colleague.headers["Location"]
    assert run.startswith(f"{prefix}/runs/")
    assert client.get(run).json["links"]["events"] == f"{run}/events"
    assert client.get(run.replace(prefix, "/api", 1)).status_code == 404
    with client.get(f"{prefix}/llmstream.js") as script:
        assert script.status_code == 200


def test_prefixes_that_look_alike_stay_apart():
    app = new_app()
    for prefix in ("/a/b", "/a-b"):
        LLMStream(app, model=instant(), url_prefix=prefix)
    client = app.test_client()
    for prefix in ("/a/b", "/a-b"):
        answer = ask(client, f"{prefix}/chat/stream")
        assert text(answer) == "Hello, you"
        assert answer.headers["Location"].startswith(f"{prefix}/runs/")


def test_they_share_one_cap_and_one_pulse():
    """What a process can carry does not grow with their number."""
    app, pause = new_app(LLMSTREAM_MAX_OPEN=1), Pause()
    records = [
        llm.record(app)
        for llm in (
            LLMStream(app, model=Puppet(["Hel", pause, "lo"])),
            LLMStream(app, model=instant(), url_prefix="/internal"),
        )
    ]
    with ask(app) as first:
        assert pause.reached.wait(PATIENCE)
        assert [len(record.open) for record in records] == [1, 1]
        assert problem(ask(app, "/internal/chat/stream"))["status"] == 503
        pause.go_on()
        assert text(first) == "Hello"
    assert text(ask(app, "/internal/chat/stream")) == "Hello, you"
    for record in records:
        record.close()
