"""What is asked for: the order of a run, its claim to an idempotency key, and what is written down of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any

import msgspec

NOBODY = "nobody"


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
    :param extension: the name of the `LLMStream` that the feature belongs to.
    :param payer: on whose accounts it goes, where that is not the owner; `NOBODY` where it goes on none.
    """

    feature: str
    owner: str
    user: Any
    input: Any
    data: Any = None
    view_args: Mapping[str, Any] = field(default_factory=dict)
    context: Any = None
    extension: str = ""
    payer: str = ""
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
    :param queue: where it waits for a worker; None where it is performed by the process that admits it.
    :param attempts: how often it is tried.
    :param repeatable: when it has failed by what may pass, its key is free, and a repeat of the request starts anew.
    :param light: it waits for other runs, and takes no worker's place.
    :param retention: seconds for which it is kept when it has ended; 0 for as long as runs usually are.
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
    extension: str = ""
    payer: str = ""
    queue: str | None = None
    attempts: int = 1
    repeatable: bool = False
    light: bool = False
    retention: float = 0.0

    @classmethod
    def of(cls, order: Order, claim: Claim, *, prompt: int, model: str, **more: Any) -> About:
        """What is written down of an order.

        :param more: what is to be known of its work: `queue`, `attempts`, `repeatable`, `light` and `retention`.
        """
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
            extension=order.extension,
            payer=order.payer,
            **more,
        )

    @property
    def claim(self) -> Claim:
        return Claim(self.owner, self.key, self.fingerprint, self.lasting)

    def order(self, input: Any) -> Order:
        """What was asked for.

        :param input: what the schema makes of the data.
        """
        return Order(
            feature=self.feature,
            owner=self.owner,
            user=self.user,
            input=input,
            data=self.data,
            view_args=self.view_args,
            context=self.context,
            conversation=self.conversation,
            parent=self.parent,
            question=self.question,
            extension=self.extension,
            payer=self.payer,
        )
