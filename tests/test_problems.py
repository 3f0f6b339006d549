"""Errors as problem details: what every one of them has, and what the log gets to know of them."""

from __future__ import annotations

import logging

import pytest
from flask import abort, make_response
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from flask_llmstream import LLMStream
from flask_llmstream.errors import ConfigurationError, NotAuthenticated
from tests.conversation import ask, instant, new_app, problem


def refusing(error):
    """A decorator such as `login_required`."""
    return lambda view: lambda **view_args: error()


def unauthorized():
    abort(401)


def not_authenticated():
    raise NotAuthenticated


@pytest.mark.parametrize("error", [unauthorized, not_authenticated])
@pytest.mark.parametrize("url", ["/api/chat/stream", "/api/runs/none/cancel"])
def test_a_401_has_a_challenge_whoever_refuses(error, url):
    """RFC 9110, 15.5.2. One that browsers open no dialogue for."""
    app = new_app()
    LLMStream(app, model=instant(), decorators=[refusing(error)])
    refused = ask(app, url)
    assert problem(refused)["status"] == 401
    assert refused.headers.getlist("WWW-Authenticate") == ['Bearer realm="llmstream"']


def test_a_challenge_of_the_application_s_own_stays():
    def unauthorized():
        raise Unauthorized(www_authenticate=WWWAuthenticate("basic", {"realm": "office"}))

    app = new_app()
    LLMStream(app, model=instant(), decorators=[refusing(unauthorized)])
    assert ask(app).headers.getlist("WWW-Authenticate") == ["Basic realm=office"]


def test_a_response_that_the_application_aborts_with_is_its_own():
    app = new_app()
    LLMStream(app, model=instant(), decorators=[refusing(lambda: abort(make_response("Tea?", 418)))])
    refused = ask(app)
    assert (refused.status_code, refused.text) == (418, "Tea?")


@pytest.mark.parametrize("forged", ["%0AERROR%20root:%20forged", "%0D%0Aforged", "%1B[2Jforged", "%E2%80%A8forged"])
def test_nobody_writes_lines_of_their_own_into_the_log(forged, caplog):
    def identify():
        raise ConfigurationError(diagnosis="the hook is at fault")

    app = new_app()
    LLMStream(app, model=instant(), identify=identify)
    assert app.test_client().get(f"/api/runs/x{forged}").status_code == 500
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage().endswith("the hook is at fault")
    assert len(record.getMessage().splitlines()) == 1
    assert record.getMessage().isprintable()
