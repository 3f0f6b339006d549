"""Flask-CORS: a page of one origin streams from an application of another, in a real browser.

Two things are needed: `LLMSTREAM_ALLOWED_ORIGINS` lets such requests in, and Flask-CORS tells the browser so.
"""

from __future__ import annotations

import threading

import pytest
from flask import Flask, request
from flask_cors import CORS

from flask_llmstream import LLMStream, errors
from tests.conversation import QUESTION, ask, instant, new_app, problem, text

PAGE_ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "Origin": PAGE_ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,idempotency-key",
}


def allow_cross_origin(app):
    """The recipe."""
    CORS(
        app,
        resources={"/api/*": {"origins": app.config["LLMSTREAM_ALLOWED_ORIGINS"]}},
        supports_credentials=True,
        allow_headers=["Content-Type", "Idempotency-Key", "Last-Event-ID"],
        expose_headers=["Location", "Retry-After"],
    )


def create_app(llm, *, recipe, origins):
    app = new_app(LLMSTREAM_ALLOWED_ORIGINS=origins)
    app.asked = []
    app.before_request(lambda: app.asked.append(f"{request.method} {request.path}"))
    if recipe:
        allow_cross_origin(app)
    llm.init_app(app)
    return app


# The headers


def test_a_preflight_is_answered_and_never_reaches_identify():
    identified = []
    llm = LLMStream(model=instant(), identify=lambda: identified.append(request.method) or "ada")
    llm.stream("/api/greet")(lambda run: "Good morning")
    client = create_app(llm, recipe=True, origins=[PAGE_ORIGIN]).test_client()
    for url, method in (
        ("/api/chat/stream", "POST"),
        ("/api/greet", "POST"),
        ("/api/runs/r1", "GET"),
        ("/api/runs/r1", "DELETE"),
        ("/api/runs/r1/events", "GET"),
        ("/api/runs/r1/cancel", "POST"),
    ):
        answer = client.options(url, headers=PREFLIGHT | {"Access-Control-Request-Method": method})
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE_ORIGIN
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert method in answer.headers["Access-Control-Allow-Methods"]
        assert "idempotency-key" in answer.headers["Access-Control-Allow-Headers"].lower()
    assert identified == []


def test_preflights_never_reach_identify_without_the_recipe_either():
    identified = []
    llm = LLMStream(model=instant(), identify=lambda: identified.append(request.method) or "ada")
    answer = create_app(llm, recipe=False, origins=()).test_client().options("/api/chat/stream", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert not any(name.startswith("Access-Control") for name in dict(answer.headers))
    assert identified == []


def test_allowed_origins_only_ever_refuse():
    """They let nobody's page read anything: that takes CORS headers, which only Flask-CORS sends."""
    client = create_app(LLMStream(model=instant()), recipe=False, origins=[PAGE_ORIGIN]).test_client()
    answer = ask(client, headers={"Origin": PAGE_ORIGIN, "Sec-Fetch-Site": "cross-site"})
    assert text(answer) == "Hello, you"
    assert not any(name.startswith("Access-Control") for name in dict(answer.headers))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_origin_that_is_not_listed_is_refused_whatever_flask_cors_says(method):
    app = new_app()
    CORS(app, origins="*")
    LLMStream(app, model=instant())
    headers = {"Origin": PAGE_ORIGIN, "Sec-Fetch-Site": "cross-site", "Accept": "text/event-stream"}
    url = "/api/chat/stream" + ("?message=Hi" if method == "GET" else "")
    said = problem(app.test_client().open(url, method=method, json=QUESTION, headers=headers))
    assert said["status"] == 403
    assert "LLMSTREAM_ALLOWED_ORIGINS" in said["detail"]


def test_every_origin_may_be_allowed():
    app = create_app(LLMStream(model=instant()), recipe=True, origins="*")
    answer = ask(app, headers={"Origin": "https://anybody.example", "Sec-Fetch-Site": "cross-site"})
    assert text(answer) == "Hello, you"


def test_problems_can_be_read_by_the_page_too():
    app = create_app(LLMStream(model=instant(), identify=lambda: None), recipe=True, origins=[PAGE_ORIGIN])
    refused = ask(app, headers={"Origin": PAGE_ORIGIN})
    assert problem(refused)["status"] == 401
    assert refused.headers["Access-Control-Allow-Origin"] == PAGE_ORIGIN
    assert "Location" in refused.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("error", [errors.ContentFiltered, errors.NotAuthenticated, ValueError])
def test_so_can_the_refusal_of_a_run_that_has_begun(error):
    llm = LLMStream(model=instant())

    @llm.stream("/api/refused")
    def refused(run):
        raise error

    client = create_app(llm, recipe=True, origins=[PAGE_ORIGIN]).test_client()
    answer = ask(client, "/api/refused", headers={"Origin": PAGE_ORIGIN})
    assert problem(answer)["status"] == getattr(error, "status", 500)
    assert answer.headers.getlist("Access-Control-Allow-Origin") == [PAGE_ORIGIN]
    assert answer.headers["Vary"]
    # The visitor got an identity, and so can ask what became of the run.
    assert client.get(answer.headers["Location"]).json["error"] == problem(answer)


# The browser

PAGE = """<!doctype html>
<title>A page of another origin</title>
<script type="module">
  window.ask = async (api, body) => {
    const { stream } = await import(`${api}/api/llmstream.js`);
    const run = stream(`${api}/api/chat/stream`, body, { credentials: "include", retries: 1 });
    window.run = run;
    const end = await run.done;
    return { text: run.text, location: run.location, cancelled: end.cancelled };
  };
  window.fetched = (url, options) => fetch(url, { credentials: "include", ...options }).then(
    async (answer) => ({ status: answer.status, location: answer.headers.get("Location"), text: await answer.text() }),
    (error) => ({ refused: error.name }));
  window.ready = true;
</script>"""


@pytest.fixture
def page(browser, serve):
    """A page of an origin of its own; `page.origin` is that."""
    app = Flask("page")
    app.add_url_rule("/", "page", lambda: PAGE)
    app.add_url_rule("/favicon.ico", "icon", lambda: ("", 204))
    origin = serve(app)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(origin)
    page.wait_for_function("window.ready")
    page.origin = origin
    yield page
    context.close()


POSTED = {"method": "POST", "headers": {"Content-Type": "application/json"}}


@pytest.mark.needs("chromium")
def test_a_page_of_another_origin_streams_stops_and_is_recognized(page, serve):
    llm = LLMStream(model=instant())
    app = create_app(llm, recipe=True, origins=[page.origin])
    app.add_url_rule("/api/visitor", "visitor", lambda: llm.visitor().owner)
    api = serve(app)
    answer = page.evaluate("([api, body]) => ask(api, body)", [api, QUESTION])
    assert answer["text"] == "Hello, you"
    assert answer["location"].startswith(f"{api}/api/runs/")  # Location is exposed, and its path is the API's
    assert "OPTIONS /api/chat/stream" in app.asked  # the browser did ask first
    status = page.evaluate("(url) => fetched(url)", answer["location"])  # the cookie of the first answer came along
    assert status["status"] == 200
    assert page.evaluate("(url) => fetched(url, { credentials: 'omit' })", answer["location"])["status"] == 404
    assert page.evaluate("(url) => fetched(url, { method: 'DELETE' })", answer["location"])["status"] == 204


@pytest.mark.needs("chromium")
def test_stop_from_a_page_of_another_origin_really_stops(page, serve):
    llm, began = LLMStream(model=instant()), threading.Event()

    @llm.stream("/api/chat/stream")
    def slow(run):
        yield "as far as this"
        began.set()
        yield from run.model.stream([{"role": "user", "content": "/stall first"}])

    app = create_app(llm, recipe=True, origins=[page.origin])
    api = serve(app)
    page.evaluate("([api, body]) => { window.answer = ask(api, body) }", [api, QUESTION])
    assert began.wait(10)
    page.wait_for_function("window.run.text === 'as far as this'")
    page.evaluate("run.stop()")
    assert page.evaluate("answer")["cancelled"] is True
    assert any(line.startswith("POST /api/runs/") and line.endswith("/cancel") for line in app.asked)


@pytest.mark.needs("chromium")
def test_an_event_source_of_another_origin_streams(page, serve):
    api = serve(create_app(LLMStream(model=instant()), recipe=True, origins=[page.origin]))
    heard = page.evaluate(
        """(url) => new Promise((resolve, reject) => {
          const source = new EventSource(url, { withCredentials: true });
          let text = "";
          source.onmessage = ({ data }) => {
            const event = JSON.parse(data);
            text += event.token ?? "";
            if (event.done) { source.close(); resolve(text); }
          };
          source.onerror = () => { source.close(); reject(new Error("refused")); };
        })""",
        f"{api}/api/chat/stream?message=/echo Hello, you",
    )
    assert heard == "Hello, you"


@pytest.mark.needs("chromium")
def test_without_flask_cors_the_browser_refuses(page, serve):
    llm = LLMStream(model=instant())
    app = create_app(llm, recipe=False, origins=[page.origin])
    api = serve(app)
    options = POSTED | {"body": '{"messages": [{"role": "user", "content": "Hi"}]}'}
    refused = page.evaluate("([url, options]) => fetched(url, options)", [f"{api}/api/chat/stream", options])
    assert refused == {"refused": "TypeError"}
    assert app.asked == ["OPTIONS /api/chat/stream"]  # the question itself was never sent
    assert llm.record(app).registry.live == []


@pytest.mark.needs("chromium")
def test_without_the_origin_s_name_the_page_reads_a_refusal(page, serve):
    app = new_app()
    CORS(app, origins=[page.origin], supports_credentials=True)
    LLMStream(app, model=instant())
    api = serve(app)
    options = POSTED | {"body": '{"messages": [{"role": "user", "content": "Hi"}]}'}
    refused = page.evaluate("([url, options]) => fetched(url, options)", [f"{api}/api/chat/stream", options])
    assert refused["status"] == 403
    assert "LLMSTREAM_ALLOWED_ORIGINS" in refused["text"]


@pytest.mark.needs("chromium")
def test_no_page_of_another_origin_spends_a_visitor_s_budget_by_get(page, serve):
    """An image's address, or a fetch that asks for no permission, carries the visitor's cookies."""
    app = new_app()
    llm = LLMStream(app, model=instant())
    app.add_url_rule("/", "first", lambda: llm.visitor().owner)
    api = serve(app)
    page.evaluate("(url) => fetch(url, { mode: 'no-cors', credentials: 'include' })", api)
    url = f"{api}/api/chat/stream?message=Hi"
    sneaky = (
        "(url) => fetch(url, { mode: 'no-cors', credentials: 'include', headers: { Accept: 'text/event-stream' } })"
    )
    with page.expect_response(url) as answered:
        page.evaluate(sneaky, url)
    assert answered.value.status == 403
    assert llm.record(app).registry.live == []
    assert llm.record(app).registry._runs == {}
