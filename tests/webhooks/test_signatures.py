"""What is sent to a receiver, and how it knows who has sent it."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime

import pytest
import standardwebhooks
from flask import Flask, abort, request
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream import webhooks
from flask_llmstream.webhooks import Signer, deliver, event_body, verify
from tests.webhooks.receiver import (
    BODY,
    EVENT_ID,
    LOOPBACK,
    NOW,
    OLD_SECRET,
    SECRET,
    receiver,
)


def test_an_event_as_the_receiver_gets_it():
    with receiver() as server:
        deliver(
            f"http://127.0.0.1:{server.port}/hooks?of=ann",
            EVENT_ID,
            BODY,
            secrets=[SECRET],
            allowed_hosts=LOOPBACK,
            now=lambda: NOW + 0.9,
        )
    [(line, headers, body)] = server.requests
    assert line == "POST /hooks?of=ann HTTP/1.1"
    assert body == BODY
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["Content-Type"] == "application/json"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == (EVENT_ID, str(NOW))
    assert verify(body, headers, secrets=[SECRET], now=lambda: NOW) == EVENT_ID


def test_what_an_event_says():
    body = event_body("run.completed", {"id": "r1", "text": "Grüße \ud83d"}, 1_667_507_170.344)
    assert json.loads(body) == {
        "type": "run.completed",
        "timestamp": "2022-11-03T20:26:10.344Z",
        "data": {"id": "r1", "text": "Grüße \ud83d"},
    }
    assert b": " not in body, "as small as it can be"


@pytest.mark.parametrize("kind", ["", "run completed", ".run", "run..ended", "lauf.fertig\n"])
def test_a_kind_of_event_is_names_with_full_stops_between_them(kind):
    with pytest.raises(ValueError, match=re.escape("like 'run.completed'")):
        event_body(kind, {}, NOW)


def test_what_json_has_no_words_for():
    with pytest.raises(ValueError):
        event_body("run.completed", {"cost": float("nan")}, NOW)
    with pytest.raises(TypeError):
        event_body("run.completed", {"cost": object()}, NOW)


def test_the_signature_that_the_reference_library_is_tested_with():
    """https://github.com/standard-webhooks/standard-webhooks, libraries/python/tests/test_webhooks.py."""
    signed = Signer([SECRET]).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.text(), st.from_regex(webhooks.EVENT_ID, fullmatch=True), st.binary(min_size=24, max_size=64))
def test_the_reference_library_believes_us_and_we_believe_it(text, event_id, key):
    secret = "whsec_" + webhooks.base64.b64encode(key).decode()
    reference = standardwebhooks.Webhook(secret)
    now = int(time.time())
    body = event_body("run.completed", {"text": text}, now)
    assert reference.verify(body, Signer([secret]).headers(event_id, now, body)) == json.loads(body)
    signature = reference.sign(event_id, datetime.fromtimestamp(now, UTC), body.decode())
    theirs = {"Webhook-Id": event_id, "Webhook-Timestamp": str(now), "Webhook-Signature": signature}
    assert verify(body, theirs, secrets=[secret]) == event_id


@pytest.mark.parametrize("known", [[SECRET], [OLD_SECRET], [OLD_SECRET, SECRET]])
def test_while_a_secret_is_changed_the_receiver_may_know_either(known):
    signed = Signer([SECRET, OLD_SECRET]).headers(EVENT_ID, NOW, BODY)
    assert len(signed["webhook-signature"].split(" ")) == 2
    assert verify(BODY, signed, secrets=known, now=lambda: NOW) == EVENT_ID


@pytest.mark.parametrize(
    "change",
    [
        {"body": BODY + b" "},
        {"webhook-id": "run_other"},
        {"webhook-id": ""},
        {"webhook-id": f"{EVENT_ID}.1"},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": ""},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": Signer([OLD_SECRET]).headers(EVENT_ID, NOW, BODY)["webhook-signature"]},
        {"webhook-signature": "v2" + Signer([SECRET]).headers(EVENT_ID, NOW, BODY)["webhook-signature"][2:]},
    ],
    ids=str,
)
def test_whatever_was_changed_on_the_way_is_not_believed(change):
    signed = Signer([SECRET]).headers(EVENT_ID, NOW, BODY)
    body = change.get("body", BODY)
    with pytest.raises(ValueError, match="webhook"):
        verify(body, signed | change, secrets=[SECRET], now=lambda: NOW)


@pytest.mark.parametrize(("off", "believed"), [(-301, False), (-300, True), (300, True), (301, False)])
def test_an_old_one_is_not_believed_again(off, believed):
    signed = Signer([SECRET]).headers(EVENT_ID, NOW, BODY)
    if believed:
        assert verify(BODY, signed, secrets=[SECRET], now=lambda: NOW + off) == EVENT_ID
    else:
        with pytest.raises(ValueError, match="too old"):
            verify(BODY, signed, secrets=[SECRET], now=lambda: NOW + off)


@pytest.mark.parametrize(
    "secrets",
    [
        [],
        SECRET,
        [""],
        ["whsec_"],
        [SECRET.removeprefix("whsec_")],
        ["whsec_" + "c2hv" * 7 + "cg=="],
        ["whsec_" + "bG9u" * 21 + "Z24="],
        ["whsec_" + "not base64! " * 4],
        ["whsec_" + "grüße" * 8],
    ],
    ids=str,
)
def test_what_is_no_secret_is_refused_and_not_repeated(secrets):
    with pytest.raises(ValueError, match="secret") as refused:
        Signer(secrets)
    assert not any(len(secret) > 6 and secret[6:] in str(refused.value) for secret in [*secrets, str(secrets)])


def test_a_secret_without_padding():
    assert Signer([SECRET + "YQ"]).headers(EVENT_ID, NOW, BODY) == Signer([SECRET + "YQ=="]).headers(
        EVENT_ID, NOW, BODY
    )


@pytest.mark.parametrize("event_id", ["", "run.1", "run 1", "run\r\nX: y"])
def test_an_id_has_nothing_that_would_change_what_is_signed(event_id):
    with pytest.raises(ValueError, match="id of an event"):
        deliver("https://hooks.example", event_id, BODY, secrets=[SECRET])


def test_a_receiver_in_flask():
    """The recipe of the documentation."""
    app = Flask("receiver")
    seen: set[str] = set()

    @app.post("/hooks")
    def hooks() -> tuple[str, int]:
        try:
            event_id = verify(request.get_data(), request.headers, secrets=[SECRET])
        except ValueError:
            abort(401)
        if event_id not in seen:
            seen.add(event_id)
            assert request.get_json()["type"] == "run.completed"
        return "", 204

    signed = Signer([SECRET]).headers(EVENT_ID, int(time.time()), BODY)
    client = app.test_client()
    for _ in range(2):
        assert client.post("/hooks", data=BODY, headers=signed, content_type="application/json").status_code == 204
    assert client.post("/hooks", data=BODY, content_type="application/json").status_code == 401
    assert seen == {EVENT_ID}
