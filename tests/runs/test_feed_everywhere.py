"""The stream that tells of one's runs, and what it takes: in a process, over several, and where Redis fails."""

from __future__ import annotations

import threading

import pytest

from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.runtime import current
from tests.conversation import ask
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage
from tests.redis_server import RedisServer
from tests.runs.listener import FEED, Listener, finished_run, key
from tests.runtime.connection import connection


def test_it_is_one_of_the_responses_that_a_process_can_carry():
    """An EventSource would never come back after an error, so it is sent away in words that it understands."""
    with stage(MAX_OPEN=1) as (app, llm):
        client, record = app.test_client(), llm.record(app)
        with Listener(client) as listener:
            listener.hears("runs")
            assert len(record.open) == 1
            with client.get(FEED) as refused:
                assert refused.status_code == 200
                pieces = iter(refused.response)
                assert next(pieces).startswith(b"retry: ")
                with pytest.raises(ConnectionResetError):
                    next(pieces)
            assert (len(record.open), len(record.feeds)) == (1, 1)
        assert (len(record.open), len(record.feeds)) == (0, 0)


def test_a_process_that_ends_sends_its_readers_away(client, app):
    record = app.extensions["llmstream"]["llmstream"]
    with Listener(client) as listener:
        listener.hears("runs")
        record.open.send_away()
        assert b"retry: " in next(listener.response.response)
        with pytest.raises(ConnectionResetError):
            listener.event()
    assert (len(record.open), len(record.feeds)) == (0, 0)


def test_any_number_of_readers_share_one_copy(client, app):
    record = app.extensions["llmstream"]["llmstream"]
    listeners = [Listener(client) for _ in range(5)]
    assert len(record.feeds) == 1
    for listener in listeners:
        listener.hears("runs")
    run_id = finished_run(client)
    assert {listener.hears("started")["id"] for listener in listeners} == {run_id}
    for listener in listeners:
        listener.response.close()


def test_a_client_that_goes_is_noticed_at_once():
    with stage() as (app, llm), connection() as (server, peer):
        record = llm.record(app)
        with Listener(app.test_client(), environ_overrides={"werkzeug.socket": server}) as listener:
            listener.hears("runs")
            gone = []

            def wait():
                with pytest.raises(ConnectionResetError):
                    listener.event()
                gone.append(True)

            thread = threading.Thread(target=wait)
            thread.start()
            peer.close()
            thread.join(PATIENCE)
            assert gone
        assert (len(record.open), len(record.feeds), len(current().watcher)) == (0, 0, 0)


def test_a_stream_that_cannot_be_made_leaves_nothing(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with stage() as (app, llm), connection() as (server, _):
        app.config.update(TESTING=False, PROPAGATE_EXCEPTIONS=False)
        record = llm.record(app)
        with monkeypatch.context() as patch:
            patch.setattr(current().watcher, "watch", refuse)
            response = app.test_client().get(FEED, environ_overrides={"werkzeug.socket": server})
            assert response.status_code == 500
        assert (len(record.open), len(record.feeds)) == (0, 0)


def test_where_the_live_runs_cannot_be_listed_nothing_is_left(monkeypatch):
    def refuse(*_, **__):
        raise StoreUnavailable

    with stage() as (app, llm):
        record = llm.record(app)
        monkeypatch.setattr(record.registry, "listed", refuse)
        with app.test_client().get(FEED) as response:
            assert next(iter(response.response)).startswith(b"retry: ")
        assert (len(record.open), len(record.feeds)) == (0, 0)


def test_a_stream_that_the_application_drops_is_given_up():
    with stage(HEARTBEAT=0.1) as (app, llm):
        app.after_request(lambda response: app.response_class("Closed for today.", 503))
        record = llm.record(app)
        assert app.test_client().get(FEED).status_code == 503
        eventually(lambda: (len(record.open), len(record.feeds)) == (0, 0))


# Several processes


@pytest.fixture
def two(redis_server):
    """Two applications that know of each other's runs by Redis alone."""
    url = redis_server.url
    with stage(REDIS_URL=url) as (here, one), stage(REDIS_URL=url) as (there, other):
        yield here.test_client(), there.test_client()
        for record in (one.record(here), other.record(there)):
            assert len(record.open) == len(record.feeds) == 0
        eventually(lambda: not [name for name in redis_server.channels() if "feed:" in name])


@pytest.mark.needs("redis-server")
def test_what_happens_elsewhere_is_told(two):
    here, there = two
    with Listener(there) as listener:
        assert listener.hears("runs") == []
        run_id = finished_run(here)
        assert listener.hears("started")["id"] == run_id
        assert listener.hears("ended")["status"] == "completed"


@pytest.mark.needs("redis-server")
def test_a_reader_who_goes_from_process_to_process_is_told_everything_once(two):
    """While runs start and end in both."""
    listener = Listener(two[0])
    assert listener.hears("runs") == []
    told, place, started = [], listener.decoder.last_event_id, []

    def start(client):
        for _ in range(10):
            started.append(finished_run(client))

    threads = [threading.Thread(target=start, args=[client]) for client in two]
    for thread in threads:
        thread.start()
    for hop in range(20):
        with listener:
            for _ in range(2):
                said, place = listener.event()
                told += [(kind, about["id"]) for kind, about in said.items()]
        listener = Listener(two[hop % 2], place)
    listener.response.close()
    for thread in threads:
        thread.join()
    assert len(told) == len(set(told)) == 40
    assert set(told) == {(kind, run_id) for kind in ("started", "ended") for run_id in started}
    assert all(told.index(("started", run_id)) < told.index(("ended", run_id)) for run_id in started)


@pytest.mark.needs("redis-server")
def test_after_a_restart_of_redis_how_things_stand_is_told_again():
    """And then the runs that their writers put back."""
    pause = Pause()
    with RedisServer() as server:
        config = {"REDIS_URL": server.url, "HEARTBEAT": 0.1}
        with stage(Puppet(["Hel", pause, "lo"]), **config) as (here, _), stage(**config) as (there, llm):
            with ask(here.test_client(), headers=key()) as answer, Listener(there.test_client()) as listener:
                run_id = answer.headers["Location"].rsplit("/", 1)[1]
                assert pause.reached.wait(PATIENCE)
                assert [run["id"] for run in listener.hears("runs")] == [run_id]
                server.restart()
                known = {run["id"] for run in listener.hears("runs")}
                while run_id not in known:
                    said, _ = listener.event()
                    known |= {run["id"] for run in said.get("runs", [])} | {told["id"] for told in only_runs(said)}
                pause.go_on()
                while "ended" not in (said := listener.event()[0]):
                    pass
                assert said["ended"]["id"] == run_id
            assert (len(llm.record(there).open), len(llm.record(there).feeds)) == (0, 0)


def only_runs(said):
    return [about for kind, about in said.items() if kind == "started"]


@pytest.mark.needs("redis-server")
def test_without_redis_whoever_comes_is_sent_away_and_whoever_is_there_waits():
    with RedisServer(persistent=True) as server, stage(REDIS_URL=server.url, HEARTBEAT=0.1) as (app, llm):
        client = app.test_client()
        with Listener(client) as listener:
            listener.hears("runs")
            server.stop()
            with client.get(FEED) as refused:
                assert next(iter(refused.response)).startswith(b"retry: ")
            assert next(listener.response.response) == b":\n\n"
            assert len(llm.record(app).open) == 1
            server.start()
            eventually(lambda: ask(client, headers=key()).status_code == 200)
            while "started" not in listener.event()[0]:
                pass
        eventually(lambda: not llm.record(app).registry.live)
