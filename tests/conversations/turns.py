"""What a conversation is made of: runs, as their writers and other processes have them."""

from __future__ import annotations

from contextlib import nullcontext

from flask_llmstream.events import Token
from flask_llmstream.ledger import Found
from flask_llmstream.log import Log
from flask_llmstream.mirror import Mirror
from flask_llmstream.order import About, Order
from flask_llmstream.run import Outcome, Run

ANN = "user:ann"
BOB = "user:bob"
TALK = "a-conversation-of-ann"
OTHER = "another-conversation"
DAY = 86400.0
ROOM = 10_000


def about(message, *, parent="", conversation=TALK, owner=ANN):
    return About(
        owner=owner,
        feature="chat",
        user="ann",
        key="key",
        fingerprint="print",
        lasting=False,
        created_at=1000.0,
        data={"conversation": conversation, "message": message},
        question=message,
        conversation=conversation,
        parent=parent,
    )


def run_of(run_id, message, **more):
    """A run that has begun."""
    said = about(message, **more)
    order = Order(feature="chat", owner=said.owner, user="ann", input=None, conversation=said.conversation)
    return Run(run_id, order, said, Log(10**7), nullcontext)


def left(run, *tokens):
    """What another process knows of a run whose writer is gone."""
    found = Found(run.id, run.about, 1, 1001.0, None, None, None, False)
    mirror = Mirror(found, None, lambda about: about.data)
    mirror.log.extend([Token(token).encode() for token in tokens])
    return mirror


def end(kept, run, *tokens, outcome=None, usage=None):
    """Have a run's writer see it to its end."""
    outcome = outcome or Outcome(state="completed", finish_reason="stop")
    for token in tokens:
        run.say(Token(token))
    run.settle(outcome)
    kept.save(run, outcome.state, usage)


def turn(kept, run_id, question, answer, **more):
    """A question and its answer."""
    run = run_of(run_id, question, **more)
    kept.opened(run)
    end(kept, run, answer)
    return run


def said(kept, parent=None, *, room=ROOM, owner=ANN, conversation=TALK):
    """What a model is told before the next message."""
    _, messages = kept.recall(owner, conversation, parent, room=room, so_far=lambda run_id: f"so far of {run_id}")
    return [message["content"] for message in messages]


def messages(kept, conversation=TALK, owner=ANN):
    return kept.read(owner, conversation)[1]
