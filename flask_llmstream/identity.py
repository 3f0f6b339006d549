"""Who asks, and whose run it is."""

from __future__ import annotations

import hmac
import logging
import secrets
from dataclasses import dataclass
from typing import Any

from flask import current_app, session

from .anyrun import AnyRun
from .errors import ConfigurationError, NotAuthenticated, RunNotFound, SecretKeyMissing
from .record import Record

log = logging.getLogger("flask_llmstream")

SESSION_KEY = "llmstream_visitor"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks.

    :param user: what the application knows them by; for anonymous visitors, the identity in their session.
    :param owner: the name under which their runs are kept.
    """

    user: Any
    owner: str


def recognize(record: Record) -> Visitor | None:
    """Who sends this request; None for an anonymous visitor who is let in, and not known yet.

    :raises NotAuthenticated: nobody who is let in.
    :raises SecretKeyMissing: the identity of an anonymous visitor can't be signed.
    """
    if record.hooks.identify is not None:
        return _known(record.hooks.identify())
    _require_anonymous_allowed(record)
    identity = session.get(SESSION_KEY)
    return _visitor(identity) if isinstance(identity, str) else None


def welcome(request_of_theirs: str | None = None) -> Visitor:
    """Give an anonymous visitor an identity, in the session.

    :param request_of_theirs: the key and the content of their first request. Both clicks of a first visit have these
        in common and no cookie yet: so they get the same identity, and both own the run. Whoever knows the key alone
        gets another.
    """
    identity = secrets.token_urlsafe(16) if request_of_theirs is None else _derived(request_of_theirs)
    session[SESSION_KEY] = identity
    return _visitor(identity)


def accessible_run(record: Record, run_id: str, action: str) -> AnyRun:
    """A run that the one who asks may do something with.

    :param action: ``read``, ``stop`` or ``delete``.
    :raises RunNotFound: there is none, or it is not theirs, which they are not told apart.
    :raises RunExpired: it was theirs, and is no longer kept.
    """
    visitor = recognize(record)
    if visitor is None:
        raise RunNotFound
    run = record.registry.find(run_id, visitor.owner)
    authorize = record.hooks.authorize
    if run.owner != visitor.owner and not (authorize is not None and authorize(visitor.user, action, run)):
        raise RunNotFound
    return run


def _known(user: str | int | None) -> Visitor:
    if user is None:
        raise NotAuthenticated
    if isinstance(user, bool) or not isinstance(user, (str, int)):
        raise ConfigurationError(
            diagnosis=f"identify must return a string or a number that lasts, such as current_user.get_id(), or None; "
            f"it returned {type(user).__name__}"
        )
    return Visitor(user, f"user:{user}")


def _require_anonymous_allowed(record: Record) -> None:
    app = current_app
    if not (app.debug or app.testing or record.settings.allow_anonymous):
        raise NotAuthenticated(
            diagnosis="a visitor was turned away: give LLMStream an identify hook, or set LLMSTREAM_ALLOW_ANONYMOUS"
        )
    if not app.secret_key:
        raise SecretKeyMissing(
            "Visitors cannot be told apart: the application needs a SECRET_KEY, or an identify hook."
        )


def _visitor(identity: str) -> Visitor:
    return Visitor(identity, f"visitor:{identity}")


def _derived(request_of_theirs: str) -> str:
    secret = current_app.secret_key
    secret = secret.encode() if isinstance(secret, str) else secret or b""
    return hmac.new(secret, b"llmstream visitor:" + request_of_theirs.encode(), "sha256").hexdigest()[:32]
