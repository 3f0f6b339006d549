"""The events of a run, from any cursor."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_llmstream import Progress
from flask_llmstream.sse import Decoder
from tests.conversation import ask, events, text
from tests.puppet import Puppet, follow, stage


def frames(response):
    with response:
        assert response.status_code == 200, response.text
        return Decoder().feed(response.data)


def test_all_its_events(ended):
    client, url = ended
    assert text(client.get(f"{url}/events")) == "Hello"


def test_the_stream_has_the_same_headers_and_opening_as_any(ended):
    client, url = ended
    with client.get(f"{url}/events") as response:
        assert response.headers["Location"] == url
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.data.startswith(b"retry: ")


def test_from_any_cursor_the_rest_and_after_the_last_nothing(ended):
    client, url = ended
    whole = frames(client.get(f"{url}/events"))
    for at, event in enumerate(whole[:-1], 1):
        assert frames(client.get(f"{url}/events", headers={"Last-Event-ID": event.id})) == whole[at:]
        assert frames(client.get(f"{url}/events", query_string={"after": event.id})) == whole[at:]
    for end in ({"headers": {"Last-Event-ID": whole[-1].id}}, {"query_string": {"after": whole[-1].id}}):
        response = client.get(f"{url}/events", **end)
        assert (response.status_code, response.data) == (204, b"")
    assert len(client.application.extensions["llmstream"]["llmstream"].open) == 0


def test_at_the_end_of_a_run_that_goes_on_it_waits(live, pause):
    client, url = live
    with client.get(f"{url}/events", headers={"Last-Event-ID": client.get(url).json["cursor"]}) as response:
        assert response.status_code == 200
        heard = follow(response)
        pause.go_on()
        assert next(heard) == {"token": "lo"}


def test_many_readers_each_at_their_own_place(live, pause):
    client, url = live
    run_id = url.rsplit("/", 1)[1]
    readers = [client.get(f"{url}/events?after={run_id}:1-{n}", buffered=False) for n in range(5)]
    pause.go_on()
    heard = [frames(reader) for reader in readers]
    assert all(later == heard[0][n:] for n, later in enumerate(heard))
    assert text_of_frames(heard[0]) == "Hello"


def text_of_frames(found):
    return "".join(json.loads(event.data).get("token", "") for event in found)


@pytest.mark.parametrize(
    ("cursor", "status"), [("{id}:1-999", 400), ("{id}:2-1", 400), ("other:1-1", 400), ("17", 400), ("{id}:0-3", 200)]
)
def test_a_cursor_that_never_was(ended, cursor, status):
    client, url = ended
    cursor = cursor.format(id=url.rsplit("/", 1)[1])
    with client.get(f"{url}/events", query_string={"after": cursor}) as response:
        assert response.status_code == status


def test_head_opens_no_stream(live):
    client, url = live
    response = client.head(f"{url}/events")
    assert (response.status_code, response.mimetype, response.data) == (200, "text/event-stream", b"")
    assert len(client.application.extensions["llmstream"]["llmstream"].open) == 1


def test_a_long_run_is_replayed_in_few_pieces():
    with stage(Puppet(["word "] * 5000)) as (app, _):
        client = app.test_client()
        with ask(client) as response:
            events(response)
        with client.get(response.headers["Location"] + "/events") as replay:
            pieces = list(replay.response)
    assert text_of_frames(Decoder().feed(b"".join(pieces))) == "word " * 5000
    assert len(pieces) <= 3


@settings(max_examples=30)
@given(
    words=st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=6),
    drops=st.lists(st.floats(0, 1), max_size=5),
)
def test_however_often_the_line_drops_nothing_is_lost_or_doubled(words, drops):
    """Each time after any number of bytes; the client comes back with the last whole event that it has."""
    with stage() as (app, llm):

        @llm.stream("/words")
        def say(run):
            for number, word in enumerate(words):
                yield Progress(number / len(words))
                yield word

        client = app.test_client()
        response, got, ended = ask(client, "/words"), [], False
        url = response.headers["Location"] + "/events"
        for drop in [*drops, 1.0]:
            with response:
                wire = response.data
            got += Decoder().feed(wire[: round(drop * len(wire))])
            ended = bool(got) and b'"done"' in got[-1].data
            response = client.get(url, headers={"Last-Event-ID": got[-1].id} if got else {})
            assert response.status_code == (204 if ended else 200)
            if ended:
                break
        assert ended
        assert text_of_frames(got) == "".join(words)
        assert [int(event.id.rpartition("-")[2]) for event in got] == list(range(1, len(got) + 1))
