"""What tests of realtime calls do to both sides: call, and read what comes of it."""

from __future__ import annotations

from contextlib import closing, contextmanager

from flask_llmstream.providers.openai_realtime import AudioDelta

KEY = "sk-very-secret-0123456789"
SECOND = bytes(48000)
FRAME = bytes(960)


@contextmanager
def calling(model, **settings):
    with closing(model.connect(**settings)) as call:
        yield call


def until(events, kind, number=1):
    """The events up to one of a kind."""
    seen = []
    for event in events:
        seen.append(event)
        number -= isinstance(event, kind)
        if not number:
            return seen
    raise AssertionError(f"no {kind.__name__} came, but {seen}")


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def audio(events):
    return b"".join(event.pcm for event in of(AudioDelta, events))
