"""Calls over real sockets, with a real gunicorn under gevent."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack

import pytest
from websockets.sync.client import connect

from flask_llmstream.testing import Schedule
from tests.servers.serving import Server, until
from tests.sockets.client import PING, Raw
from tests.voice.caller import LOUD, QUIET, Phone
from tests.voice.conftest import ANSWER
from tests.voice.desk import WORD
from tests.voice.sockets import PROTOCOL, Socket, call

SOAK = float(os.environ.get("VOICE_SOAK", "5"))
"""Seconds."""


def test_turn(server):
    with call(server) as phone:
        assert phone.line.subprotocol == PROTOCOL
        phone.say()
        phone.expect("transcript", text="tell me")
        phone.expect("turn")
        assert len(phone.heard) // 2 == 9 * WORD
        assert "".join(message["token"] for message in phone.of("token")) == ANSWER
        assert phone.mistakes == []
    assert phone.closed == (1000, "The call was ended.")


@pytest.mark.parametrize("samples", [0, WORD, 4 * WORD])
def test_interruption(server, model, samples):
    with call(server, until=samples) as phone:
        model.then(Schedule(tokens=ANSWER, stall_after=8))
        phone.say()
        phone.until_true(lambda: phone.samples == samples and phone.got.get(1, 0) > samples)
        phone.sound(LOUD, 300)
        phone.expect("flush", reason="speech")
        phone.sound(QUIET, 700)
        interrupted = phone.expect("interrupted")
        assert interrupted["played_ms"] == samples // 24
        assert len(interrupted["heard"].split()) == samples // WORD
        model.wait_for(lambda model: model.requests[0].state == "cancelled")
        phone.play(None)
        phone.expect("turn", lambda turn: turn["run"] != interrupted["run"])
        assert phone.mistakes == []
        with server.get(f"/api/conversations/{phone.of('ready')[0]['conversation']}", X_User="ann") as answer:
            assert answer.json()["messages"][1]["content"] == interrupted["heard"]


def strands(server: Server) -> int:
    """Greenlets that have something to do."""
    with server.get("/strands") as answer:
        return int(answer.json()["strands"])


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (401, "/api/voice", {"X-User": "nobody"}),
        (403, "/api/voice", {"Origin": "https://evil.test"}),
        (404, "/api/voices", {}),
        (426, "/api/voice", {"Sec-WebSocket-Version": "12"}),
        (400, "/api/voice", {"Sec-WebSocket-Protocol": "other.v1"}),
    ],
)
def test_refusal_before_the_call(server, status, path, headers):
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": PROTOCOL,
    }
    with server.ask("GET", path, headers=upgrade | headers) as answer:
        assert answer.status == status
    # A page that sees nothing of that asks why.
    with server.ask("GET", path, headers=headers) as answer:
        assert answer.status == (426 if status == 400 else status)
        if status != 404:
            assert answer.json()["status"] == answer.status


def test_page_of_a_friend_may_call(server):
    with connect(
        "ws" + server.url.removeprefix("http") + "/api/voice",
        subprotocols=[PROTOCOL],
        origin="https://friend.test",
        proxy=None,
    ) as socket:
        socket.send('{"type":"start"}')
        assert json.loads(socket.recv())["type"] == "ready"
        socket.send('{"type":"end"}')
        with pytest.raises(Exception, match="1000"):
            socket.recv()


@pytest.mark.parametrize(
    ("first", "code", "said"),
    [
        ("hello", 4400, "not of the protocol"),
        (b"\x00" * 20, 4400, "in words"),
        ('{"type":"ping","t":1}', 4400, "begins with start or resume"),
        ('{"type":"start","mode":"both"}', 4400, "$.mode"),
        ('{"type":"start","input":{"format":"pcm16","rate":44100}}', 4400, "44100"),
        ('{"type":"start","output":{"format":"pcmu","rate":16000}}', 4400, "pcmu"),
        ('{"type":"start","data":{"surprise":1}}', 4400, ""),
        ('{"type":"start","conversation":"../x"}', 4400, ""),
        ('{"type":"start","conversation":"cccccccccccccccccccc","parent":"nothing"}', 4404, "conversation"),
        ('{"type":"resume","token":"forged","seq":0}', 4404, "no such call"),
    ],
)
def test_first_message_that_is_none(server, first, code, said):
    with call(server, start=False) as phone:
        phone.line.send(first)
        closed = phone.hung_up()
        assert closed[0] == code
        assert said in closed[1]


def test_user_who_says_nothing_for_long(server):
    quiet = server.at("/quiet")
    with call(quiet) as phone:
        assert phone.of("ready")[0]["idle"] == 0.5
        assert phone.hung_up() == (4408, "Nobody has said anything for long.")
    quiet.await_state(sessions=0)


def test_call_that_lasts_too_long(server):
    short = server.at("/short")
    with call(short) as phone:
        assert phone.of("ready")[0]["length"] == 0.5
        assert phone.hung_up()[0] == 4410
    short.await_state(sessions=0)


def test_pings_come_as_often_as_is_configured(server):
    with Raw(server, "/pinged/api/voice", Sec_WebSocket_Protocol=PROTOCOL) as client:
        assert client.frame() == (PING, b"")
    server.await_state(open=0)


def test_user_who_hangs_up_is_not_waited_for(server):
    with call(server, until=WORD) as phone:
        phone.say()
        phone.until_true(lambda: phone.samples == WORD)
        phone.line.close()
        phone.line = None
    server.await_state(sessions=0, live=0)


def test_upload_flood(server):
    with call(server) as phone:
        phone.sound(QUIET, 12_000)
        assert phone.hung_up()[0] == 1008


def test_silence_costs_nothing_of_its_own(server):
    """What is not speech goes nowhere, and the call stays as it was."""
    with call(server) as phone:
        before = strands(server)
        phone.sound(QUIET, 5_000)
        phone.tell("ping", t=1)
        phone.expect("pong")
        assert phone.messages[-1]["type"] == "pong"
        assert len(phone.messages) == 2
        server.await_state(sessions=1, open=1, live=0)
        assert strands(server) <= before


# Lines that break


def test_call_goes_on_where_it_was_when_the_line_breaks(server):
    with call(server, until=4 * WORD + 100) as phone:
        phone.say()
        phone.until_true(lambda: phone.samples == 4 * WORD + 100)
        [ready] = phone.of("ready")
        phone.line.cut()
        until(lambda: server.state()["open"] == 0)
        assert server.state()["sessions"] == 1
        heard = len(phone.heard) // 2
        phone.until = None
        phone.resume(Socket(server, phone), ready["token"])
        resumed = phone.expect("resumed", restored="full")
        again = phone.expect("speaking", continues=True)
        assert again["generation"] == resumed["generation"]
        assert again["offset"] == 4 * WORD
        phone.expect("turn")
        assert heard == 4 * WORD + 100
        assert len(phone.heard) // 2 == 9 * WORD + 100
        assert phone.mistakes == []
        assert len(phone.of("ready")) == len(phone.of("run")) == 1


def test_messages_that_were_missed_come_once_and_in_order(server, model):
    """The client has lost what it had got last, as if that had never come."""
    with call(server, until=WORD) as phone:
        phone.acknowledges = False
        phone.say()
        phone.until_true(lambda: phone.samples == WORD and phone.of("token"))
        [ready] = phone.of("ready")
        phone.line.cut()
        until(lambda: server.state()["open"] == 0)
        known = len([message for message in phone.messages if message.get("seq", 0) <= 3])
        lost = phone.messages[known:]
        del phone.messages[known:]
        phone._read = min(phone._read, known)
        phone.seq = 3
        phone.resume(Socket(server, phone), ready["token"])
        phone.expect("resumed")
        assert phone.messages[known : known + len(lost)] == lost
        phone.play(None)
        phone.expect("turn")
        assert phone.mistakes == []
        assert [m["seq"] for m in phone.messages if "seq" in m] == list(range(1, phone.seq + 1))


def test_another_connection_takes_the_call_over(server):
    with call(server, until=WORD) as phone:
        phone.say()
        phone.until_true(lambda: phone.samples == WORD)
        second = Phone(until=WORD)
        second.seq, second.generation = phone.seq, phone.generation
        second.got, second.played = dict(phone.got), dict(phone.played)
        socket = Socket(server, second)
        second.resume(socket, phone.of("ready")[0]["token"])
        second.expect("resumed")
        assert phone.hung_up()[0] == 4409
        second.play(None)
        second.expect("turn")
        assert second.mistakes == []
        second.say()
        second.expect("turn")
        second.tell("end")
        assert second.hung_up()[0] == 1000
        socket.close()


def test_sound_that_was_under_way_when_the_line_broke_has_ended(server):
    with call(server) as phone:
        phone.sound(LOUD, 400)
        phone.expect("speech_started")
        phone.line.cut()
        until(lambda: server.state()["open"] == 0)
        phone.resume(Socket(server, phone), phone.of("ready")[0]["token"])
        phone._frames = 0
        phone.expect("resumed")
        phone.until_true(lambda: phone.of("turn"))
        phone.say()
        phone.expect("turn", lambda turn: turn["run"] != phone.of("turn")[0]["run"])
        assert len(phone.of("speech_started")) == len(phone.of("speech_stopped")) == 2
        assert phone.mistakes == []


def test_token_of_another_user_is_none(server):
    with call(server, user="ann") as phone:
        token = phone.of("ready")[0]["token"]
        with call(server, user="bob", start=False) as thief:
            thief.tell("resume", token=token, seq=0)
            assert thief.hung_up() == (4404, "There is no such call any more. Start a new one.")
        phone.tell("ping", t=1)
        phone.expect("pong")


def test_call_that_was_ended_is_none_to_come_back_to_but_its_conversation_is(server):
    with call(server) as phone:
        phone.say()
        phone.expect("turn")
    with call(server, start=False) as again:
        again.tell("resume", token=phone.of("ready")[0]["token"], seq=phone.seq)
        ready = again.expect("ready", restored="history")
        assert ready["conversation"] == phone.of("ready")[0]["conversation"]


# Many


def test_calls_leave_nothing(server):
    """200, in all the ways in which they end."""
    with call(server) as phone:
        phone.say()
        phone.expect("turn")
    server.await_state(sessions=0, open=0, live=0)
    before = strands(server)
    for _ in range(10):
        phones = []
        for n in range(20):
            phone = Phone(until=WORD)
            phone.line = Socket(server, phone)
            if n % 4:
                phone.tell("start")
            if n % 4 > 1:
                phone.tell("message", text="tell me")
            phones.append(phone)
        for n, phone in enumerate(phones):
            if n % 4:
                phone.expect("ready")
            if n % 4 > 1:
                phone.until_true(lambda phone=phone: phone.samples)
        for n, phone in enumerate(phones):
            line = phone.line
            if n % 4 == 0:
                line.close()
            else:
                phone.tell("end")
                phone.hung_up()
                line.close()
    server.await_state(sessions=0, open=0, live=0, watched=0)
    until(lambda: strands(server) <= before + 2)


def test_200_calls_at_once(server):
    with ExitStack() as calls:
        phones = [calls.enter_context(call(server, user=f"user {n}")) for n in range(200)]
        assert server.state()["sessions"] == 200
        for phone in phones:
            phone.tell("message", text="tell me")
        for phone in phones:
            phone.expect("turn")
            assert (phone.mistakes, phone.closed) == ([], None)
    server.await_state(sessions=0, open=0, live=0)


def test_soak(server, model):
    """20 users who speak, listen and interrupt, for some seconds."""
    model.schedule = Schedule(tokens=ANSWER, rate=200)
    turns = 0
    with ExitStack() as calls:
        phones = [
            calls.enter_context(call(server, user=f"user {n}", until=n % 5 * WORD if n % 2 else None))
            for n in range(20)
        ]
        ends = time.monotonic() + SOAK
        while time.monotonic() < ends:
            before = time.monotonic()
            for phone in phones:
                phone.say()
            turns += 1
            for phone in phones:
                phone.until_true(lambda phone=phone, turns=turns: len(phone.of("speaking")) == turns)
            for phone in phones[1::2]:
                phone.until_true(lambda phone=phone: phone.samples >= phone.until)
                phone.tell("interrupt")
            for phone in phones:
                phone.until_true(lambda phone=phone, turns=turns: len(phone.of("turn")) == turns)
            time.sleep(max(0.0, before + 0.5 - time.monotonic()))  # nobody speaks faster than twice as fast as that
        assert turns > 2
        for n, phone in enumerate(phones):
            assert (phone.mistakes, phone.closed) == ([], None)
            heard = [len(message["heard"].split()) for message in phone.of("interrupted")]
            assert heard == ([n % 5] * turns if n % 2 else [])
