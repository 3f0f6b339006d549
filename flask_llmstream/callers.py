"""Who makes a call, and the runs that their turns become."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from flask import current_app
from itsdangerous import BadSignature, URLSafeTimedSerializer

from .anyrun import AnyRun
from .commands import Start
from .features import VoiceFeature
from .identity import recognize, welcome
from .links import Links
from .log import Reader
from .order import Claim, Order
from .providers import Message
from .record import Record
from .schemas import Chat, load
from .sessions import Refusal, Scope, Session
from .starts import request_context
from .store import digest
from .writer import Function

TOKEN_LASTS = 86_400
"""Seconds for which a token leads back to its conversation."""
NO_SUCH_CALL = "There is no such call any more. Start a new one."


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who opens a connection, and to what: what the request said of them.

    :param signer: signs tokens; None without a secret key.
    """

    record: Record
    feature: VoiceFeature
    owner: str
    user: Any
    view_args: dict[str, Any]
    context: Any
    links: Links
    signer: URLSafeTimedSerializer | None

    @classmethod
    def of(cls, record: Record, feature: VoiceFeature, view_args: dict[str, Any]) -> Caller:
        """Who sends the current request. An anonymous visitor has an identity from then on.

        :raises NotAuthenticated: nobody who is let in.
        """
        visitor = recognize(record) or welcome()
        key = current_app.secret_key
        return cls(
            record=record,
            feature=feature,
            owner=visitor.owner,
            user=visitor.user,
            view_args=view_args,
            context=request_context(record),
            links=Links(record),
            signer=URLSafeTimedSerializer(key, salt="llmstream-voice") if key else None,
        )

    @property
    def scope(self) -> Scope:
        """What is called."""
        view_args = {name: str(value) for name, value in self.view_args.items()}
        return [self.record.name, self.feature.name, view_args]

    def token(self, session: Session) -> str:
        """What leads back to a call, by whichever process."""
        if self.signer is None:
            return session.id
        what = [session.id, digest(self.owner), self.scope, msgspec.to_builtins(session.wishes)]
        return str(self.signer.dumps(what))

    def read_token(self, token: str) -> tuple[str, Start | None]:
        """The session that a token names, and what it was begun with; none of another's.

        :raises Refusal: it is no token of this user's.
        """
        if self.signer is None:
            return token, None
        try:
            session, owner, scope, wishes = self.signer.loads(token, max_age=TOKEN_LASTS)
            if (owner, scope) == (digest(self.owner), self.scope):
                return session, msgspec.convert(wishes, Start)
        except (BadSignature, ValueError):
            pass
        raise Refusal(4404, NO_SUCH_CALL)


class CallRuns:
    """The runs of one call: each message of its user's starts one, in the conversation.

    :param wishes: what the client asked for when the call began, with the conversation.
    :param restored: whether another process may still be answering there, by a line that is lost.
    """

    def __init__(self, caller: Caller, wishes: Start, *, restored: bool = False) -> None:
        self._caller = caller
        self._wishes = wishes
        self._restored = restored
        self._parent = None if restored else wishes.parent  # there it was for the first turn alone

    def start(self, text: str, spoken: Callable[[Function], Function]) -> AnyRun:
        caller, record = self._caller, self._caller.record
        data = self._data(text)
        with record.enter():
            value = load(record.schema(caller.feature), data)
        value, parent = record.continued(caller.owner, value)
        order = Order(
            feature=caller.feature.name,
            owner=caller.owner,
            user=caller.user,
            input=value,
            data=data,
            view_args=caller.view_args,
            context=caller.context,
            conversation=self._wishes.conversation,
            parent=parent,
            question=text,
            extension=record.name,
        )
        work = record.work(caller.feature, value)
        work = replace(work, function=spoken(work.function), grace=None)
        if self._restored:
            work = replace(work, when_busy="replace")
        claim = Claim(caller.owner, "turn:" + secrets.token_urlsafe(16), digest(text), lasting=False)
        run, _ = record.registry.start(order, claim, work)
        self._parent, self._restored = None, False
        return run

    def stop(self, run: AnyRun) -> None:
        self._caller.record.registry.stop(run)

    def discard(self, run: AnyRun) -> None:
        registry, conversations = self._caller.record.registry, self._caller.record.conversations
        registry.forget(run)
        conversations.unsay(run)

    def read(self, run: AnyRun) -> Reader:
        return self._caller.record.registry.read(run)

    def leave(self, run: AnyRun, reader: Reader) -> None:
        self._caller.record.registry.leave(run, reader)

    def links(self, run: AnyRun) -> dict[str, str]:
        return self._caller.links.to(run.id)

    def history(self) -> Sequence[Message]:
        """What was said before a first message, which could be answered.

        :raises LLMStreamError: it could not.
        """
        caller, record = self._caller, self._caller.record
        with record.enter():
            value = load(record.schema(caller.feature), self._data("."))
        continued: Chat = record.continued(caller.owner, value)[0]
        return continued.messages[:-1]

    def _data(self, text: str) -> dict[str, Any]:
        wishes = {"model": self._wishes.model, "temperature": self._wishes.temperature, "parent": self._parent}
        given = {name: value for name, value in wishes.items() if value is not None}
        return {**self._wishes.data, **given, "conversation": self._wishes.conversation, "message": text}
