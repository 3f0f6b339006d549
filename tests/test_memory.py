"""What a process keeps of runs that have ended: what can still be asked for, and that within bounds."""

from __future__ import annotations

import gc
import weakref

import pytest

from flask_llmstream import kept as kept_module
from flask_llmstream import run_ended
from flask_llmstream.errors import UpstreamRateLimited
from tests.conversation import ask, events, problem
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage


class Precious:
    """What a function has in hand; a database session, say."""


@pytest.mark.parametrize("words", [[], ["Hel"]], ids=["before its first word", "after it"])
def test_a_failed_run_keeps_nothing_of_what_its_function_had_in_hand(words):
    """An error's traceback has every local variable between it and whoever raised it, and so has its cause's."""
    kept = []
    with stage(ORPHAN_GRACE=None) as (app, llm):

        @llm.stream("/broken")
        def broken(run):
            mine = Precious()
            kept.append(weakref.ref(mine))
            yield from words
            try:
                theirs = Precious()
                kept.append(weakref.ref(theirs))
                raise ConnectionError
            except ConnectionError as error:
                raise UpstreamRateLimited from error

        client = app.test_client()
        first, second = ask(client, "/broken"), None
        if words:
            events(first)
        else:
            # Several readers of one failed run raise none of what they share.
            key = {"Idempotency-Key": "8f14e45f-ceea-467f-a0e6-3d1f2b7c9a10"}
            assert problem(first)["status"] == 429
            first, second = ask(client, "/broken", headers=key), ask(client, "/broken", headers=key)
            assert problem(first) == problem(second)
        run = llm.record(app).registry.find(first.headers["Location"].rsplit("/", 1)[1], None)
        error = run.outcome.error
        assert isinstance(error, UpstreamRateLimited)
        assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
        eventually(lambda: gc.collect() >= 0 and not any(thing() for thing in kept))


def test_an_ended_run_keeps_neither_its_question_nor_what_performed_it():
    with stage() as (app, llm):
        answer = ask(app)
        events(answer)
        run = llm.record(app).registry.find(answer.headers["Location"].rsplit("/", 1)[1], None)
        eventually(lambda: run.input is None)
        assert getattr(run, "task", None) is None and getattr(run, "model", None) is None
        assert app.test_client().get(answer.headers["Location"]).json["text"] == "Hello"


def says(app, url="/api/chat/stream"):
    """Where an answer that has been heard to its end is."""
    answer = ask(app, url)
    events(answer)
    return answer.headers["Location"]


def is_kept(llm, app, *urls):
    ids = [url.rsplit("/", 1)[1] for url in urls]
    return [run_id in llm.record(app).registry._kept._expiry for run_id in ids]


def test_of_too_many_ended_runs_the_longest_ended_go_first(monkeypatch):
    """Not the longest begun: who has only just heard the end is the likeliest to come back for it."""
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"], ["Hello"]), JOIN_IDENTICAL=False) as (app, llm), ask(app) as first:
        assert pause.reached.wait(PATIENCE)
        second, third = says(app), says(app)
        eventually(lambda: is_kept(llm, app, second, third) == [True, True])
        size = llm.record(app).registry._kept._size // 2
        monkeypatch.setattr(kept_module, "MOST", 2.5 * size)
        pause.go_on()
        events(first)
        begun_first = first.headers["Location"]
        eventually(lambda: is_kept(llm, app, begun_first, second, third) == [True, False, True])
        client = app.test_client()
        assert problem(client.get(second))["type"].endswith("run-expired")
        assert client.get(third).json["text"] == client.get(begun_first).json["text"] == "Hello"


def test_the_last_one_to_end_is_kept_however_long_it_is(monkeypatch):
    monkeypatch.setattr(kept_module, "MOST", 1)
    with stage() as (app, llm):
        first, second = says(app), says(app)
        eventually(lambda: is_kept(llm, app, first, second) == [False, True])
        assert app.test_client().get(second).json["text"] == "Hello"


def test_live_runs_are_no_part_of_that(monkeypatch):
    monkeypatch.setattr(kept_module, "MOST", 1)
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"], ["Hello"]), JOIN_IDENTICAL=False) as (app, llm), ask(app) as live:
        assert pause.reached.wait(PATIENCE)
        first, second = says(app), says(app)
        eventually(lambda: is_kept(llm, app, first, second) == [False, True])
        assert app.test_client().get(live.headers["Location"]).json["status"] == "in_progress"
        pause.go_on()
        events(live)


def test_what_is_no_longer_kept_is_no_longer_counted():
    with stage() as (app, llm):
        kept = llm.record(app).registry._kept
        urls = [says(app) for _ in range(3)]
        eventually(lambda: is_kept(llm, app, *urls) == [True] * 3)
        assert kept._size > 3 * kept_module.RUN_OVERHEAD
        for url in urls:
            app.test_client().delete(url)
        assert kept._size == 0


def test_what_is_no_longer_kept_takes_no_room_in_the_store_either(monkeypatch):
    monkeypatch.setattr(kept_module, "MOST", 1)
    with stage() as (app, llm):

        @llm.job("/api/long")
        def long(run):
            return "x" * 100_000

        client, store = app.test_client(), llm.record(app).store
        urls = []
        for n in range(2):
            body = {"messages": [{"role": "user", "content": str(n)}]}
            urls.append(client.post("/api/long", json=body, headers={"Prefer": "wait=5"}).headers["Location"])
        eventually(lambda: is_kept(llm, app, *urls) == [False, True])
        names = {
            key.decode().split(":")[1] for key in store.command("KEYS", "*") if urls[0].rsplit("/")[-1] in key.decode()
        }
        assert names == {"ended"}
        assert problem(client.get(urls[0]))["type"].endswith("run-expired")


def test_a_result_counts_as_much_as_text():
    """It is held as it went over the wire, and once more for those who ask."""
    size = 100_000
    with stage() as (app, llm):
        llm.stream("/long")(lambda run: "x" * size)
        url = says(app, "/long")
        eventually(lambda: is_kept(llm, app, url) == [True])
        assert llm.record(app).registry._kept._size > 2 * size


def test_a_run_that_is_forgotten_while_its_end_is_told_is_not_kept():
    """By the application itself, for example, which has saved the answer and wants nothing left here."""

    def forget(sender, run, **_):
        sender.extensions["llmstream"]["llmstream"].registry.forget(run)

    with stage() as (app, llm), run_ended.connected_to(forget, sender=app):
        answer = ask(app)
        events(answer)
        registry = llm.record(app).registry
        eventually(lambda: registry.live == [] and not registry._runs)
        assert (registry._kept._expiry, registry._kept._size) == ({}, 0)
