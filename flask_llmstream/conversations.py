"""Conversations: a tree of messages for each, in the store, whose every branch is kept.

A run in a conversation adds two messages when it begins: the user's, and after it the answer, which is in progress
until the run ends, in whichever process. Each message names its parent, so a question that is asked anew, or in other
words, is one more branch. What is kept lives on for some time after the last message.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import time
from typing import Any

import msgspec

from .anyrun import AnyRun
from .errors import ConversationNotFound, HistoryFull, InvalidInput
from .events import Usage
from .ledger import LONGEST_RUN, encode
from .run import Run
from .store import Store, digest

MOST_MESSAGES = 1000
"""Messages of a conversation, all branches together."""
MOST_BYTES = 4_194_304
"""Bytes of a conversation, at which it takes no further question; an answer that has begun is kept as it ends."""
MOST_CONVERSATIONS = 1000
"""Conversations of an owner."""
TITLE_LENGTH = 80
"""Characters of a title that is made of the first message."""

ID = re.compile(r"[A-Za-z0-9_-]{16,64}\Z")
"""A conversation's, which its client may make. Nobody else's has the same: the owner is part of its key."""

FULL = {
    "messages": "This conversation has as many messages as it may have. Go on in a new one.",
    "size": "This conversation is as long as it may be. Go on in a new one.",
    "conversations": "You have as many conversations as you may have. Delete one of them first.",
}
NO_SUCH_MESSAGE = "There is no such message in this conversation."
BYTES_A_CHARACTER = 6
"""As JSON's escapes have them."""
FIELDS = ("title", "created_at", "updated_at", "head")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message.

    :param id: a run's id for its answer, and that with ``.q`` for the question.
    :param parent: the message that it follows; None for the first of a branch that begins anew.
    :param run: the run that it belongs to.
    :param status: of an answer: ``in_progress``, and then the state in which its run ended.
    """

    id: str
    parent: str | None
    role: str
    content: str
    run: str
    status: str
    finish_reason: str | None = None
    usage: Usage | None = None
    created_at: float
    ended_at: float | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a conversation beside its messages.

    :param updated_at: the second of the last message.
    :param head: the message that was added last.
    """

    id: str
    title: str | None
    created_at: float
    updated_at: float
    head: str | None


class Conversations:
    """The conversations of all owners.

    :param retention: seconds for which one is kept after its last message.
    """

    def __init__(self, store: Store, *, retention: float) -> None:
        self._store = store
        self._retention = retention

    def begin(self, owner: str, title: str | None) -> Conversation:
        """A conversation without messages yet.

        :raises HistoryFull: there are as many as there may be.
        """
        conversation = secrets.token_urlsafe(16)
        self._say(owner, conversation, title=title)
        return self._read(owner, [conversation])[0]

    def newest(self, owner: str, *, limit: int, before: str | None = None) -> tuple[list[Conversation], bool]:
        """An owner's conversations, the one with the latest message first.

        :param before: the last one that is known already.
        :returns: at most `limit` of them, and whether there are more.
        :raises ConversationNotFound: `before` is none.
        """
        index = self._store.key("conversations", digest(owner))
        expired = int((time() - self._retention) * 1000)
        commands = [("ZREMRANGEBYSCORE", index, "-inf", expired), ("ZREVRANK", index, before or "")]
        _, rank = self._store.commands(*commands)
        if before is not None and rank is None:
            raise ConversationNotFound
        first = 0 if before is None else rank + 1
        ids = [name.decode() for name in self._store.command("ZREVRANGE", index, first, first + limit)]
        return self._read(owner, ids[:limit]), len(ids) > limit

    def read(self, owner: str, conversation: str) -> tuple[Conversation, list[Message], str | None]:
        """A conversation, its messages in the order in which they were added, and the run that answers it now.

        :raises ConversationNotFound: the owner has none of this name.
        """
        record, messages, _, _, slot = self._keys(owner, conversation)
        fields, values, run = self._store.commands(("HMGET", record, *FIELDS), ("HVALS", messages), ("GET", slot))
        if fields[1] is None:
            raise ConversationNotFound
        numbered = sorted((_number(value), value) for value in values)
        path = [_message(value) for _, value in numbered]
        return _conversation(conversation, fields), path, None if run is None else run.decode()

    def recall(
        self, owner: str, conversation: str, parent: str | None, *, room: int, so_far: Callable[[str], str]
    ) -> tuple[str, list[dict[str, str]]]:
        """What a model is to know of a conversation, for a message that follows `parent`.

        Where that is too much, the oldest turns are left out, each as a whole: a user's message and what came of it.

        :param parent: None for the message that was added last; an empty one begins anew.
        :param room: characters.
        :param so_far: gives the text of an answer that is in progress, by its run.
        :returns: the parent's id, and the messages as models take them.
        :raises ConversationNotFound: it has been deleted, or is not there to have such a parent.
        :raises InvalidInput: it has no such message.
        """
        if parent == "":
            return "", []
        record, messages, _, deleted, _ = self._keys(owner, conversation)
        args = ["head" if parent is None else parent, room * BYTES_A_CHARACTER + MOST_MESSAGES * 512]
        verdict, last, path = self._store.call("recall", [record, messages, deleted], args)
        if verdict == b"deleted" or (verdict == b"missing" and parent is not None):
            raise ConversationNotFound
        if verdict == b"parent":
            raise InvalidInput(NO_SUCH_MESSAGE, errors={"parent": [NO_SUCH_MESSAGE]})
        latest_first = [_message(value) for value in path]
        if latest_first and latest_first[0].status == "in_progress":
            latest_first[0] = msgspec.structs.replace(latest_first[0], content=so_far(latest_first[0].run))
        return last.decode(), _turns(latest_first, room)

    def opened(self, run: AnyRun) -> None:
        """Add the two messages of a run that begins.

        :raises ConversationNotFound: it has been deleted meanwhile.
        :raises HistoryFull: there is no more room.
        """
        if run.conversation is None:
            return
        question, answer = _exchange(run, "in_progress", None)
        self._say(run.owner, run.conversation, question, answer, title=_title(question.content))

    def save(self, run: AnyRun, state: str, usage: Usage | None) -> None:
        """Keep a run's answer as far as it got. Where the conversation has been deleted, nothing is kept.

        Any process may say what becomes of an answer that was left in progress, and its writer still that it is whole.
        """
        if run.conversation is None:
            return
        question, answer = _exchange(run, state, usage)
        title = _title(question.content)
        # What Redis has lost is begun anew with this; what was never begun, as the start failed, is not.
        begins = not (isinstance(run, Run) and run.forgotten)
        with suppress(ConversationNotFound, HistoryFull):
            self._say(
                run.owner,
                run.conversation,
                question,
                answer,
                title=title,
                begins=begins,
                adds=False,
                urgent=True,
            )

    def unsay(self, run: AnyRun) -> None:
        """Take a run's question and its answer back, as if it had never been asked.

        :raises StoreUnavailable: that cannot be done now.
        """
        if run.conversation is not None:
            keys = self._keys(run.owner, run.conversation)[:3]
            self._store.call("unsay", keys, [run.id, run.conversation])

    def rename(self, owner: str, conversation: str, title: str) -> Conversation:
        """Give it another title.

        :raises ConversationNotFound: the owner has none of this name.
        """
        record = self._keys(owner, conversation)[0]
        if not self._store.call("rename", [record], [title]):
            raise ConversationNotFound
        found = self._read(owner, [conversation])
        if not found:
            raise ConversationNotFound
        return found[0]

    def delete(self, owner: str, conversation: str) -> str | None:
        """Keep nothing of it.

        :returns: the run that answers it now, whose answer will not be kept.
        :raises ConversationNotFound: the owner has none of this name.
        """
        args = [conversation, int(LONGEST_RUN * 1000)]
        there, run = self._store.call("discard", self._keys(owner, conversation), args)
        if not there:
            raise ConversationNotFound
        return run.decode() or None

    def _say(
        self,
        owner: str,
        conversation: str,
        *said: Message,
        title: str | None = None,
        begins: bool = True,
        adds: bool = True,
        urgent: bool = False,
    ) -> None:
        ask: dict[str, Any] = {
            "id": conversation,
            "begins": begins,
            "adds": adds,
            "retention": max(1, int(self._retention * 1000)),
            "messages": MOST_MESSAGES,
            "size": MOST_BYTES,
            "conversations": MOST_CONVERSATIONS,
        }
        if title is not None:
            ask["title"] = title
        args: list[Any] = [encode(ask)]
        for message in said:
            args += (message.id, message.status, message.parent or "", encode(message))
        verdict = self._store.call("say", self._keys(owner, conversation)[:4], args, urgent=urgent).decode()
        if verdict == "deleted":
            raise ConversationNotFound
        if verdict in FULL:
            raise HistoryFull(FULL[verdict], limit=verdict, most=ask[verdict])

    def _read(self, owner: str, ids: Sequence[str]) -> list[Conversation]:
        """Those that are there."""
        if not ids:
            return []
        records = (("HMGET", self._keys(owner, name)[0], *FIELDS) for name in ids)
        rows = zip(ids, self._store.commands(*records), strict=True)
        return [_conversation(name, fields) for name, fields in rows if fields[1] is not None]

    def _keys(self, owner: str, conversation: str) -> list[str]:
        """Record, messages, the owner's conversations, what stands for a deleted one, and the slot (see admit.lua)."""
        key, name = self._store.key, digest(owner, conversation)
        return [
            key("conversation", name),
            key("messages", name),
            key("conversations", digest(owner)),
            key("deleted", name),
            key("talk", name),
        ]


def lasting(run: AnyRun) -> str:
    """Of an answer that was spoken, what its user has heard: to both sides, the rest was never said."""
    if isinstance(run, Run) and run.heard_so_far is not None and run.outcome is None:
        return run.heard_so_far()
    return run.text if run.heard is None else run.heard


def branch(messages: Sequence[Message], last: str | None) -> list[Message]:
    """The messages that lead to one, with it, the first one first."""
    by_id = {message.id: message for message in messages}
    path: list[Message] = []
    while last is not None and (message := by_id.get(last)) is not None:
        path.append(message)
        last = message.parent
    return path[::-1]


def _exchange(run: AnyRun, status: str, usage: Usage | None) -> tuple[Message, Message]:
    """A run's question and its answer, of which there is nothing yet while it is in progress."""
    in_progress = status == "in_progress"
    outcome = run.outcome if isinstance(run, Run) else None
    question = Message(
        id=f"{run.id}.q",
        parent=run.about.parent or None,
        role="user",
        content=run.about.question,
        run=run.id,
        status="completed",
        created_at=run.created_at,
    )
    answer = Message(
        id=run.id,
        parent=question.id,
        role="assistant",
        content="" if in_progress else lasting(run),
        run=run.id,
        status=status,
        finish_reason=None if outcome is None else outcome.finish_reason,
        usage=usage,
        created_at=run.created_at,
        ended_at=None if in_progress else run.ended_at or time(),
    )
    return question, answer


def _turns(latest_first: Sequence[Message], room: int) -> list[dict[str, str]]:
    """As many of the latest turns as there is room for. Answers of which nothing came are none to a model."""
    said = [message for message in latest_first if message.content]
    size = kept = 0
    for number, message in enumerate(said, 1):
        size += len(message.content)
        if size > room:
            break
        if message.role == "user":
            kept = number
    return [{"role": message.role, "content": message.content} for message in reversed(said[:kept])]


def _title(text: str) -> str | None:
    """What a conversation is called until somebody gives it a name: how its first message begins."""
    line = " ".join(text.split())
    if len(line) > TITLE_LENGTH:
        start = line[: TITLE_LENGTH - 1]
        line = (start.rpartition(" ")[0] or start) + "…"
    return line or None


def _conversation(name: str, fields: Sequence[bytes | None]) -> Conversation:
    title, created_at, updated_at, head = fields
    return Conversation(
        id=name,
        title=None if title is None else title.decode(),
        created_at=float(created_at or 0) / 1000,
        updated_at=float(updated_at or 0) / 1000,
        head=None if head is None else head.decode(),
    )


_decode = msgspec.json.Decoder(Message).decode


def _message(value: bytes) -> Message:
    return _decode(value.split(b" ", 3)[3])


def _number(value: bytes) -> int:
    return int(value.partition(b" ")[0])
