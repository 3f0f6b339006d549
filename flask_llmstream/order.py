"""What is asked for: the order of a run, its claim to an idempotency key, and what is written down of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any

import msgspec


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What was asked for.

    :param feature: the feature's name.
    :param owner: whose run it is.
    :param user: what the application knows its owner by.
    :param input: what the schema made of the request.
    :param data: the request's input as it came, JSON; another process makes its own input of it.
    :param view_args: the values in the URL.
    :param context: what the application's `context` hook returned.
    :param conversation: what it continues, if it does.
    :param parent: the message there that it follows; empty where it begins anew.
    :param question: the message that is added there.
    """

    feature: str
    owner: str
    user: Any
    input: Any
    data: Any = None
    view_args: Mapping[str, Any] = field(default_factory=dict)
    context: Any = None
    conversation: str | None = None
    parent: str | None = None
    question: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A run's claim to an idempotency key.

    :param owner: whose key it is.
    :param key: what the client sent, or what stands for its request where it sent none.
    :param fingerprint: digest of the request; the same key with another one is a mistake.
    :param lasting: whether the key outlives the run's end, for as long as its log is kept.
    """

    owner: str
    key: str
    fingerprint: str
    lasting: bool


class About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run's record says of it from the beginning.

    :param data: the request's input as it came.
    :param parent: the message that the question follows; empty where it begins anew.
    :param question: the message that it adds to its conversation.
    :param prompt: estimate of the tokens that go in.
    :param key: with `fingerprint` and `lasting`, its claim to an idempotency key.
    """

    owner: str
    feature: str
    user: Any
    key: str
    fingerprint: str
    lasting: bool
    created_at: float
    data: Any = None
    view_args: dict[str, Any] = {}
    context: Any = None
    conversation: str | None = None
    parent: str | None = None
    question: str = ""
    prompt: int = 0
    model: str = ""

    @classmethod
    def of(cls, order: Order, claim: Claim, *, prompt: int, model: str) -> About:
        """What is written down of an order."""
        return cls(
            owner=order.owner,
            feature=order.feature,
            user=order.user,
            key=claim.key,
            fingerprint=claim.fingerprint,
            lasting=claim.lasting,
            created_at=time(),
            data=order.data,
            view_args=dict(order.view_args),
            context=order.context,
            conversation=order.conversation,
            parent=order.parent,
            question=order.question,
            prompt=prompt,
            model=model,
        )

    @property
    def claim(self) -> Claim:
        return Claim(self.owner, self.key, self.fingerprint, self.lasting)
