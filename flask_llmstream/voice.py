"""The voice view: a WebSocket over which a user speaks with a feature, and hears its answers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from math import inf
from typing import Any

import msgspec
from flask import Blueprint, request

from .audio import Format
from .callers import NO_SUCH_CALL, Caller, CallRuns
from .commands import AudioFormat, Resume, Start, read
from .delivery import AHEAD_MS
from .dialogue import Dialogue
from .errors import ConversationNotFound, LimitReached, LLMStreamError, RequestRefused
from .features import View, VoiceFeature
from .problems import with_problems
from .record import Record
from .requests import require_own_origin
from .run import Run
from .runtime import current
from .schemas import Chat
from .sessions import RESUME_WITHIN, Bounds, Refusal, Session
from .terms import Terms
from .websocket import Connection, ConnectionClosed, SocketLimits, add_socket_rule, serve

log = logging.getLogger("flask_llmstream")

RULE = "/voice"
PROTOCOL = "llmstream.voice.v1"
LARGEST_DATA = 8192
"""Bytes of a feature's own fields: a client brings them along when it comes back."""
STARTED_WITHIN = 10.0
"""Seconds within which a client has to say what it wants."""
FINAL = {1000, 1012}
"""The codes behind which nobody comes back to this process."""
LOST = (ConnectionClosed, OSError)


def voice(run: Run) -> Iterator[Any]:
    """The default feature: what the user says goes to the model, and back comes what that answers."""
    asked: Chat = run.input
    return run.model.stream(asked.messages)


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the default voice. An application replaces it by declaring a feature of its own on this rule."""
    rule = record.url_prefix + RULE
    default = VoiceFeature(name="voice", rule=rule, function=voice)
    record.features[rule] = default
    record.views[rule] = record.decorated(feature_view(record, default), default.decorators)

    def view(**view_args: Any) -> Any:
        return record.views[rule](**view_args)

    add_socket_rule(blueprint, RULE, "voice", with_problems(view))


def feature_view(record: Record, feature: VoiceFeature) -> View:
    """The view of a voice feature: all checks come before the connection is one."""

    def view(**view_args: Any) -> Any:
        require_own_origin(request, record)
        if "Upgrade" in request.headers and "Sec-WebSocket-Protocol" not in request.headers:
            raise RequestRefused(f"Ask for the subprotocol {PROTOCOL}: it says which version is spoken.")
        record.providers(feature).check()
        caller = Caller.of(record, feature, view_args)
        limits = SocketLimits(ping=record.settings.socket_timeouts.ping or inf)
        return serve(record, lambda connection: _talk(caller, connection), subprotocols=(PROTOCOL,), limits=limits)

    view.__name__, view.__module__ = feature.name, feature.function.__module__
    return view


def _talk(caller: Caller, connection: Connection) -> None:
    """Serve a connection from its first message to its end."""
    try:
        session = _begin(caller, connection)
        try:
            _converse(session, connection)
        except Refusal as refusal:
            session.close(refusal.code, refusal.reason)
            raise
        finally:
            if connection.code in FINAL:
                session.close(connection.code, "The call was ended.")
            session.detach(connection)
    except Refusal as refusal:
        connection.close(refusal.code, refusal.reason)
    except LOST:
        pass


def _begin(caller: Caller, connection: Connection) -> Session:
    """The call that the first message asks for, or comes back to.

    :raises Refusal: it cannot be had.
    """
    message = connection.receive(timeout=STARTED_WITHIN)
    try:
        if not isinstance(message, str):
            raise ValueError(f"A call begins with a message in words, within {STARTED_WITHIN:g} s.")
        command = read(message)
        if isinstance(command, Resume):
            return _resumed(caller, command, connection)
        if not isinstance(command, Start):
            raise ValueError("A call begins with start or resume.")
        return _started(caller, command)
    except ValueError as error:
        raise Refusal(4400, str(error)) from None
    except ConversationNotFound as error:
        raise Refusal(4404, error.detail) from None
    except LLMStreamError as error:
        connection.send(_problem(error))
        raise Refusal(_code(error), error.detail) from None


def _resumed(caller: Caller, command: Resume, connection: Connection) -> Session:
    session_id, wishes = caller.read_token(command.token)
    session = caller.record.sessions.find(session_id)
    if session is not None and (session.owner, session.scope) == (caller.owner, caller.scope):
        if session.dialogue.resume(connection, command.seq, command.generation, command.played):
            return session
        session.close(1001, "The client is too far behind.")
    if wishes is None:
        raise Refusal(4404, NO_SUCH_CALL)
    return _started(caller, wishes, restored=True)


def _started(caller: Caller, wishes: Start, *, restored: bool = False) -> Session:
    record, most = caller.record, caller.record.settings.max_runs_per_user
    if most is not None and record.sessions.is_full(caller.owner, most):
        raise LimitReached("runs", "You have as many calls as you may have at a time. End one first.")
    if len(msgspec.json.encode(wishes.data)) > LARGEST_DATA:
        raise ValueError(f"data has more than {LARGEST_DATA} bytes.")
    wishes = msgspec.structs.replace(wishes, conversation=wishes.conversation or secrets.token_urlsafe(16))
    terms = Terms(
        input=_format(wishes.input),
        output=_format(wishes.output),
        mode=wishes.mode,
        language=wishes.language,
        voice=wishes.voice,
    )
    runs = CallRuns(caller, wishes, restored=restored)
    history = runs.history()
    providers = record.providers(caller.feature)
    dialogue = Dialogue(
        terms,
        *providers.parts(terms, history),
        runs,
        backchannels=providers.voice.backchannels,
        anticipates=providers.voice.anticipates,
    )
    limits = record.settings.socket_timeouts
    bounds = Bounds(idle=limits.quiet or inf, length=limits.call or inf, leaving=lambda: record.drain.refuses)
    session = Session(dialogue, caller.owner, caller.scope, wishes, bounds, record.sessions.drop)
    record.sessions.add(session)
    dialogue.delivery.tell(
        "ready",
        session=session.id,
        token=caller.token(session),
        restored="history" if restored else "none",
        conversation=wishes.conversation,
        mode=wishes.mode,
        input=wishes.input,
        output=wishes.output,
        ahead_ms=AHEAD_MS,
        resume_within=RESUME_WITHIN,
        idle=limits.quiet,
        length=limits.call,
    )
    return session


def _converse(session: Session, connection: Connection) -> None:
    """Take what the client says, for as long as there is a line."""
    delivery = session.dialogue.delivery
    connection.on_leaving = lambda within: delivery.tell("draining", within=within)

    def send() -> None:
        try:
            delivery.send_to(connection)
        except LOST:
            pass
        except Exception:
            log.exception("what a call had to say could not be sent")
            session.close(1011, "The server made an error.")
            connection.close(1011, "The server made an error.")

    session.attach(connection)
    current().task(send, connection.wake).start()
    while True:
        message = connection.receive()
        if message is not None:
            session.take(message, connection)


def _code(error: LLMStreamError) -> int:
    """The close code of a call that could not be begun: whose fault it is, and whether to try again."""
    if error.status == 429:
        return 4429
    if error.status < 500:
        return 4400
    return 1011 if error.retry_after is None else 1013


def _format(asked: AudioFormat) -> Format:
    return Format(asked.format, asked.rate)


def _problem(error: LLMStreamError) -> str:
    return msgspec.json.encode({"type": "problem", "seq": 0, "problem": error.problem()}).decode()
