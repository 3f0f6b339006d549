"""A conversation as a client sees it."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

from tests.conversation import ask
from tests.puppet import stage

TALK = "3b2f1c9e-77aa-4d0b-9e5f-1f0b6a0c2d3e"
LIST = "/api/conversations"
ONE = f"{LIST}/{TALK}"
CHAT = "/api/chat/stream"
REFUSED = "urn:problem-type:flask-llmstream:"


def say(app, message, *, conversation=TALK, headers=None, **more):
    """Ask a question in a conversation."""
    return ask(app, body={"conversation": conversation, "message": message, **more}, headers=headers)


def read(app, url=ONE, **headers):
    """A conversation as its owner sees it."""
    response = app.test_client().get(url, headers=headers)
    assert response.status_code == 200, response.text
    return response.json


def contents(app, url=ONE):
    return [message["content"] for message in read(app, url)["messages"]]


def sent(puppet, call=-1):
    """What the model was told."""
    return [message["content"] for message in puppet.calls[call].messages]


@contextmanager
def processes(shared, puppet, other=None, **more):
    """Two processes of one application."""
    with ExitStack() as running:
        yield [running.enter_context(stage(model, **shared, **more)) for model in (puppet, other or puppet)]
