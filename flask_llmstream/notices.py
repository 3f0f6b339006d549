"""Webhooks: a receiver is told of a job's end by a run of its own, which is tried until it is delivered."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic, time
from typing import Any

import msgspec
from marshmallow import Schema, fields

from .admission import Allowance
from .anyrun import AnyRun
from .errors import ConfigurationError, LLMStreamError, StoreUnavailable, WebhookRefused
from .features import JobFeature, WebhookURL
from .order import NOBODY, Claim, Order
from .record import Record
from .run import Run
from .runtime import current
from .targets import AllowedHosts, Target
from .webhooks import Signer, deliver, event_body

log = logging.getLogger("flask_llmstream")

NAME = "webhook"
ATTEMPTS = 40
"""Of a delivery; with the pauses between them, they take about two hours."""
TIMEOUT = 30.0
"""Seconds that one attempt may take."""
TRIED_FOR = 60.0
"""Seconds in which a notice is put into its queue, where Redis is away."""
PAUSE = 1.0


class Notice(Schema):
    """What is delivered, and where."""

    url = fields.String(required=True)
    event = fields.String(required=True)
    body = fields.String(required=True)


def add_notices(record: Record) -> None:
    """Have receivers told of the ends of jobs.

    :raises ConfigurationError: the webhooks are not set up as they have to be.
    """
    settings = record.settings
    try:
        if settings.webhook_secrets:
            Signer(settings.webhook_secrets)
    except ValueError as error:
        raise ConfigurationError(f"LLMSTREAM_WEBHOOK_SECRETS: {error}.") from None
    try:
        AllowedHosts(settings.webhook_hosts)
    except ValueError as error:
        raise ConfigurationError(f"LLMSTREAM_WEBHOOK_HOSTS: each is {error}.") from None
    check_receiver(record, "LLMSTREAM_WEBHOOK_URL", settings.webhook_url)

    def send(run: Run) -> None:
        notice = run.input
        deliver(
            notice["url"],
            notice["event"],
            notice["body"].encode(),
            secrets=settings.webhook_secrets,
            allowed_hosts=settings.webhook_hosts,
        )

    record.inner[NAME] = JobFeature(
        name=NAME, rule=f"({NAME})", function=send, schema=Notice, attempts=ATTEMPTS, timeout=TIMEOUT
    )
    record.after_end.append(lambda run: announce(record, run))


def check_receiver(record: Record, who: str, url: WebhookURL) -> None:
    """See whether webhooks can be sent there, as far as that is known before there is one.

    :param who: what has named the receiver.
    :raises ConfigurationError: there is nothing to sign them with, or the URL is none that they are delivered to.
    """
    if url is None:
        return
    if not record.settings.webhook_secrets:
        raise ConfigurationError(f"{who} needs LLMSTREAM_WEBHOOK_SECRETS: webhooks are signed.")
    if callable(url):
        return
    try:
        Target.of(url)
    except WebhookRefused as error:
        raise ConfigurationError(f"{who} is {url!r}. {error.detail}") from None


def announce(record: Record, run: AnyRun) -> None:
    """Have the receiver of a run's end be told of it, if it has one."""
    feature = record.feature(run.feature)
    if isinstance(run, Run) and run.forgotten:
        return
    if not isinstance(feature, JobFeature) or run.owner.partition(":")[0] in record.inner:
        return  # of the parts of a batch, the batch tells, and of a delivery nobody
    url = _receiver(record, feature, run)
    if url is None:
        return
    event = f"run-{run.id}"
    body = event_body(f"run.{run.decided}", _told(run), time()).decode()
    data = {"url": url, "event": event, "body": body}
    order = Order(
        feature=NAME,
        owner=f"{NAME}:{run.id}",
        user=None,
        input=data,
        data=data,
        extension=record.name,
        payer=NOBODY,
    )
    # It takes nothing of anybody's, and what it says need not be kept for longer than it takes to see that it was said.
    work = replace(record.work(record.inner[NAME], data), prompt=0, allowance=Allowance(), retention=0.0)
    until, rest = monotonic() + TRIED_FOR, current().bell()
    while True:
        try:
            record.registry.start(order, Claim(order.owner, event, event, lasting=True), work)
        except StoreUnavailable as error:
            if monotonic() < until:
                rest.wait(PAUSE)
                continue
            log.error("the webhook of run %s could not be put into its queue: %s", run.id, error.diagnosis)
        except LLMStreamError as error:
            log.error("the webhook of run %s could not be put into its queue: %s", run.id, error.detail)
        return


def _receiver(record: Record, feature: JobFeature, run: AnyRun) -> str | None:
    """Where the end of a run is told. A mistake there is none of the run's."""
    url = feature.webhook
    if callable(url):
        try:
            with record.enter():
                url = url(run)
        except Exception:
            log.exception("run %s of %s has no webhook: the function for its URL failed", run.id, run.feature)
            return None
    if url is None:
        return record.settings.webhook_url
    if isinstance(url, str):
        return url
    log.error("run %s of %s has no webhook: its URL is %s", run.id, run.feature, type(url).__name__)
    return None


def _told(run: AnyRun) -> Mapping[str, Any]:
    """What a receiver is told of a run; its text, and a large result, it asks for."""
    terminal = run.terminal if isinstance(run, Run) else None
    ending = msgspec.json.decode(terminal) if terminal is not None else run.ending
    return {
        "id": run.id,
        "feature": run.feature,
        "status": run.decided,
        "attempt": run.attempt,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "result": ending.get("result"),
        "result_size": ending.get("result_size"),
        "usage": ending.get("usage"),
        "error": ending.get("problem"),
    }
