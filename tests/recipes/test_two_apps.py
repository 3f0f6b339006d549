"""Two applications in one process: one LLMStream for both, each with its own configuration and runs."""

from __future__ import annotations

import threading

import httpx2
from flask import current_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_llmstream import LLMStream, run_ended
from tests.conversation import QUESTION, ask, instant, new_app, text


def test_one_extension_serves_two_applications_at_the_same_time(serve):
    llm = LLMStream(model=instant(), identify=lambda: "ada")
    began = threading.Barrier(2, timeout=10)

    @llm.stream("/api/whereami")
    def whereami(run):
        began.wait()  # both are under way
        yield current_app.config["NAME"]

    shop, office = new_app(NAME="the shop"), new_app(NAME="the office")
    llm.init_app(shop)
    llm.init_app(office)
    url = serve(DispatcherMiddleware(shop, {"/office": office}))
    answers = {}

    def visit(path):
        answers[path] = httpx2.post(f"{url}{path}/api/whereami", json=QUESTION)

    visits = [threading.Thread(target=visit, args=(path,)) for path in ("", "/office")]
    for each in visits:
        each.start()
    for each in visits:
        each.join()
    assert '{"token":"the shop"}' in answers[""].text
    assert '{"token":"the office"}' in answers["/office"].text
    # The same person, and the same process; yet each application knows its own runs only.
    run = answers["/office"].headers["Location"]
    assert httpx2.get(url + run).json()["text"] == "the office"
    assert httpx2.get(url + run.removeprefix("/office")).status_code == 404


def test_each_application_s_receivers_hear_of_its_own_runs():
    llm = LLMStream(model=instant())
    llm.stream("/api/greet")(lambda run: iter(["Good morning"]))
    shop, office = new_app(), new_app()
    heard = []
    for app in (shop, office):
        llm.init_app(app)

    def save(sender, run, **_):
        heard.append((sender, run.text))

    with run_ended.connected_to(save, sender=office):
        for app in (shop, office):
            assert text(ask(app, "/api/greet")) == "Good morning"
    assert heard == [(office, "Good morning")]
