"""What a request asks to be started: whose it is, its input, the run that it repeats."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from flask import request

from .admission import REFUSALS, TRY_AGAIN
from .anyrun import AnyRun
from .errors import ConfigurationError, LimitReached, StoreUnavailable
from .features import Feature
from .identity import recognize, welcome
from .order import Claim, Order
from .quotas import explained
from .record import Record
from .requests import fingerprint, idempotency_key
from .schemas import load
from .work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A request that is ready to be carried out."""

    record: Record
    order: Order
    claim: Claim
    work: Work

    def carry_out(self) -> tuple[AnyRun, bool]:
        """Start the run, or join the one that the request repeats.

        :returns: the run, and whether it is new.
        :raises LimitReached: the error says which runs are live, and how the quotas stand.
        :raises LLMStreamError: as `Registry.start` does.
        """
        keep = False
        try:
            with explained(self.record):
                run, keep = self.record.registry.start(self.order, self.claim, self.work)
                if run.feature != self.order.feature:  # another feature's answers the conversation
                    raise LimitReached("conversation", REFUSALS["conversation"], retry_after=TRY_AGAIN, live=[run.id])
        except StoreUnavailable:
            keep = True  # it may have been admitted after all
            raise
        finally:
            if not keep:
                self.record.uploads.discard(self.order.data)
        return run, keep


def prepare(record: Record, feature: Feature, view_args: dict[str, Any], read: Callable[[], Any]) -> Start:
    """Read what the current request asks of a feature. An anonymous visitor has an identity from then on.

    :param read: reads the input.
    :raises RequestRefused: it cannot be carried out.
    """
    visitor = recognize(record)
    key = idempotency_key(request)
    data = read()
    try:
        value = load(record.schema(feature), data)
        content = fingerprint(feature.name, view_args, data)
        if visitor is None:
            visitor = welcome(f"{key}:{content}" if key else None)
        value, parent = record.continued(visitor.owner, value)
        order = Order(
            feature=feature.name,
            owner=visitor.owner,
            user=visitor.user,
            input=value,
            data=data,
            view_args=view_args,
            context=request_context(record),
            conversation=None if parent is None else value.conversation,
            parent=parent,
            question="" if parent is None else value.message,
            extension=record.name,
        )
        return Start(
            record=record,
            order=order,
            claim=claim(record, visitor.owner, key, content),
            work=record.work(feature, value),
        )
    except BaseException:
        record.uploads.discard(data)
        raise


def claim(record: Record, owner: str, key: str | None, request_fingerprint: str) -> Claim:
    """The claim of a request to its key, or to what stands for one."""
    if key is not None:
        return Claim(owner, "key:" + key, request_fingerprint, lasting=True)
    # A second click sends no key. While the run that the first one started is live, it is the same request.
    name = "same:" + request_fingerprint if record.settings.join_identical else secrets.token_urlsafe(16)
    return Claim(owner, name, request_fingerprint, lasting=False)


def request_context(record: Record) -> Any:
    """What the run shall know of this request, which it outlives."""
    if record.hooks.context is None:
        return None
    value = record.hooks.context()
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, msgspec.MsgspecError) as error:
        raise ConfigurationError(diagnosis=f"the context hook must return what JSON can hold: {error}") from error
