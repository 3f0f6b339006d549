"""Every error of the package, in one tree; each kind knows its HTTP status and its problem details (RFC 9457).

LLMStreamError                       500
├── ConfigurationError               500   the application is put together wrongly
│   ├── ModelNotConfigured           503
│   └── SecretKeyMissing             503
├── RequestRefused                   400   the request cannot be carried out as it stands
│   ├── InvalidCursor                400
│   ├── InvalidKey                   400
│   ├── NotAuthenticated             401
│   ├── OriginRefused                403
│   ├── RunNotFound                  404
│   ├── ConversationNotFound         404
│   ├── EventStreamNotAccepted       406
│   ├── HistoryFull                  409   `limit` says what cannot grow: messages, size or conversations
│   ├── RunExpired                   410
│   ├── ContentTooLarge              413
│   ├── QueryTooLong                 414
│   ├── NotJSON                      415
│   ├── FileRefused                  415   a file is of a type that is not taken
│   ├── InvalidInput                 422   `errors` names each field
│   ├── KeyReused                    422
│   ├── UpgradeRequired              426   the address is one for WebSockets
│   └── LimitReached                 429   `limit` says which: runs, conversation, starts or tokens
├── Overloaded                       503   passing: `retry_after` says when to come back
│   └── ShuttingDown                 503   this process ends; another one, or the next, takes the request
├── StoreUnavailable                 503   Redis cannot be reached, or refuses
├── UpstreamError                    502   the model's server did not deliver
│   ├── UpstreamAuthenticationFailed 502
│   ├── UpstreamForbidden            502
│   ├── UpstreamRefused              502   it called our request wrong
│   ├── UpstreamRateLimited          429
│   ├── UpstreamUnavailable          502   it answered 5xx
│   ├── UpstreamUnreachable          502   no connection
│   ├── UpstreamInsecure             502   TLS failed
│   ├── UpstreamTimeout              504   `phase`: connect, first_token, idle or total
│   ├── UpstreamTruncated            502   its stream ended without an end marker
│   ├── UpstreamMalformed            502   it sent something that is not the protocol
│   ├── InvalidAnswer                502   its answer does not fit the schema; `errors` names each field
│   └── AnswerCut                    502   the answer was longer than it may be, and is of no use in part
├── WebhookRefused                   422   never to be delivered; `reason`: url, address or gone
├── WebhookFailed                    502   not delivered this time
├── ContentFiltered                  422   the model refused before it generated anything
├── Aborted                          500   the application's function called `abort`, which may give another status
├── Retold                                 one of these, as another process told it
└── RunError                         500   the run itself broke
    ├── FeatureFailed                500   an exception in the application's function
    ├── InvalidOutput                500   the application's function yielded something that is no event
    ├── RunTimeout                   504   it took longer than its feature may
    └── RunInterrupted               503   the process that wrote the run went away

`RunCancelled` stands outside the tree: like `GeneratorExit` it is a request to leave, not an error, so no
`except Exception` in an application's function swallows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

PROBLEM_TYPE = "urn:problem-type:flask-llmstream:"


class LLMStreamError(Exception):
    """The root of every error that this package raises.

    :param detail: a sentence for a person; the kind's own sentence where it is left out. It reaches clients,
        so nothing secret belongs in it.
    :param retry_after: seconds after which the same request may succeed.
    :param diagnosis: what the server's log shall say besides. It never reaches a client.
    :param extensions: further members of the problem details (RFC 9457, section 3.2).
    """

    status: int = 500
    slug: ClassVar[str] = "internal-error"
    title: str = "Something went wrong on the server"
    retryable: bool = False
    """Whether what it tells of may have passed when the same is tried again."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        retry_after: float | None = None,
        diagnosis: str | None = None,
        **extensions: Any,
    ) -> None:
        self.detail = detail or f"{self.title}."
        self.retry_after = retry_after
        self.diagnosis = diagnosis
        self.extensions = extensions
        super().__init__(self.detail)

    def problem(self) -> dict[str, Any]:
        """The problem details object of this error (RFC 9457)."""
        problem: dict[str, Any] = {
            "type": PROBLEM_TYPE + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.retry_after is not None:
            problem["retry_after"] = self.retry_after
        return problem | self.extensions


class RunCancelled(BaseException):
    """Raised inside a run's function when the run is stopped. Clean up in `finally`; do not swallow it."""


class ConfigurationError(LLMStreamError):
    slug = "configuration-error"
    title = "The application is not set up correctly"


class ModelNotConfigured(ConfigurationError):
    status = 503
    slug = "model-not-configured"
    title = "No language model is configured"


class SecretKeyMissing(ConfigurationError):
    status = 503
    slug = "secret-key-missing"
    title = "Visitors cannot be told apart: the application has no SECRET_KEY"


class RequestRefused(LLMStreamError):
    status = 400
    slug = "bad-request"
    title = "The request cannot be carried out"


class InvalidCursor(RequestRefused):
    slug = "invalid-cursor"
    title = "The cursor is not one that this server gave out"


class InvalidKey(RequestRefused):
    slug = "invalid-idempotency-key"
    title = "The idempotency key cannot be used"


class NotAuthenticated(RequestRefused):
    status = 401
    slug = "not-authenticated"
    title = "You need to sign in"


class OriginRefused(RequestRefused):
    status = 403
    slug = "origin-refused"
    title = "Requests from this page are not allowed"


class RunNotFound(RequestRefused):
    status = 404
    slug = "run-not-found"
    title = "There is no such run"


class ConversationNotFound(RequestRefused):
    status = 404
    slug = "conversation-not-found"
    title = "There is no such conversation"


class EventStreamNotAccepted(RequestRefused):
    status = 406
    slug = "event-stream-not-accepted"
    title = "This address answers an event stream only"


class HistoryFull(RequestRefused):
    status = 409
    slug = "history-full"
    title = "There is no room for further messages"


class RunExpired(RequestRefused):
    status = 410
    slug = "run-expired"
    title = "The run has ended and is no longer kept"


class ContentTooLarge(RequestRefused):
    status = 413
    slug = "content-too-large"
    title = "The request is too large"


class QueryTooLong(RequestRefused):
    status = 414
    slug = "query-too-long"
    title = "The conversation is too long for a GET request"


class NotJSON(RequestRefused):
    status = 415
    slug = "not-json"
    title = "The request body is of another type than is taken here"


class FileRefused(RequestRefused):
    status = 415
    slug = "file-refused"
    title = "Files of this type are not taken"


class InvalidInput(RequestRefused):
    status = 422
    slug = "invalid-input"
    title = "The input is not valid"


class KeyReused(RequestRefused):
    status = 422
    slug = "idempotency-key-reused"
    title = "The idempotency key was already used with another request"


class UpgradeRequired(RequestRefused):
    status = 426
    slug = "upgrade-required"
    title = "This address is for WebSockets"


class LimitReached(RequestRefused):
    """One's share is used up.

    :param limit: which one: ``runs`` at a time, one a ``conversation``, ``starts`` or ``tokens`` in a window.
    :param live: the ids of one's live runs, the oldest first.
    :param standing: how one's quotas stand, as `ledger.Standing` has it.
    """

    status = 429
    slug = "limit-reached"
    title = "You have reached a limit"

    def __init__(
        self,
        limit: str,
        detail: str | None = None,
        *,
        live: Sequence[str] = (),
        standing: Sequence[Any] = (),
        **more: Any,
    ) -> None:
        super().__init__(detail, limit=limit, **more)
        self.limit = limit
        self.live = live
        self.standing = standing


class Overloaded(LLMStreamError):
    status = 503
    slug = "overloaded"
    title = "The server is busy"


class ShuttingDown(Overloaded):
    slug = "shutting-down"
    title = "The server is about to restart"


class StoreUnavailable(LLMStreamError):
    status = 503
    slug = "store-unavailable"
    title = "The server cannot keep track of answers at the moment"


class UpstreamError(LLMStreamError):
    status = 502
    slug = "upstream-error"
    title = "The language model's server did not deliver an answer"


class UpstreamAuthenticationFailed(UpstreamError):
    slug = "upstream-authentication-failed"
    title = "The language model's server did not accept this application's key"


class UpstreamForbidden(UpstreamError):
    slug = "upstream-forbidden"
    title = "The language model's server does not allow this request"


class UpstreamRefused(UpstreamError):
    slug = "upstream-refused"
    title = "The language model's server could not use the request"


class UpstreamRateLimited(UpstreamError):
    status = 429
    slug = "upstream-rate-limited"
    title = "The language model is receiving too many requests"
    retryable = True


class UpstreamUnavailable(UpstreamError):
    slug = "upstream-unavailable"
    title = "The language model's server has a fault"
    retryable = True


class UpstreamUnreachable(UpstreamError):
    slug = "upstream-unreachable"
    title = "The language model's server cannot be reached"
    retryable = True


class UpstreamInsecure(UpstreamError):
    slug = "upstream-insecure"
    title = "No secure connection to the language model's server could be made"


class UpstreamTimeout(UpstreamError):
    """A time-out on the way to the model.

    :param phase: which one: ``connect``, ``first_token``, ``idle`` or ``total``.
    """

    status = 504
    slug = "upstream-timeout"
    title = "The language model took too long"

    def __init__(self, phase: str, **more: Any) -> None:
        super().__init__(f"{self.title} ({phase.replace('_', ' ')}).", phase=phase, **more)
        self.phase = phase


class UpstreamTruncated(UpstreamError):
    slug = "upstream-truncated"
    title = "The language model's answer broke off"
    retryable = True


class UpstreamMalformed(UpstreamError):
    slug = "upstream-malformed"
    title = "The language model's server sent something unintelligible"


class InvalidAnswer(UpstreamError):
    """The model's answer does not fit the schema, however often it was asked.

    :param errors: what is wrong with the last one, by field.
    :param attempts: how often it was asked.
    """

    slug = "invalid-answer"
    title = "The language model's answer is not of the form that was asked for"

    def __init__(self, detail: str | None = None, *, errors: Mapping[str, Any], attempts: int, **more: Any) -> None:
        super().__init__(detail, errors=dict(errors), attempts=attempts, **more)


class AnswerCut(UpstreamError):
    slug = "answer-cut"
    title = "The language model's answer is longer than it may be"


class WebhookRefused(LLMStreamError):
    """A webhook that was not delivered, and would not be at another time.

    :param reason: its ``url`` is none that webhooks are delivered to, its host's ``address`` is not public, or the
        receiver said that it is ``gone``.
    """

    status = 422
    slug = "webhook-refused"
    title = "Webhooks cannot be delivered there"

    def __init__(self, detail: str | None = None, *, reason: str = "url", **more: Any) -> None:
        super().__init__(detail, reason=reason, **more)
        self.reason = reason


class WebhookFailed(LLMStreamError):
    status = 502
    slug = "webhook-failed"
    title = "The webhook was not delivered"
    retryable = True


class ContentFiltered(LLMStreamError):
    status = 422
    slug = "content-filtered"
    title = "The language model declined to answer this"


class Aborted(LLMStreamError):
    """What `flask.abort` raises, and `get_or_404` with it, inside a run.

    :param status: its HTTP status.
    :param title: that status in words.
    """

    slug = "aborted"
    title = "The application refused this"

    def __init__(self, detail: str | None = None, *, status: int = 500, title: str | None = None) -> None:
        self.status = status
        self.title = title or type(self).title
        super().__init__(detail)


class RunError(LLMStreamError):
    slug = "run-failed"
    title = "The answer could not be completed"


class FeatureFailed(RunError):
    slug = "feature-failed"
    title = "The application made an error while it prepared the answer"


class InvalidOutput(RunError):
    slug = "invalid-output"
    title = "The application produced something that cannot be sent"


class RunTimeout(RunError):
    status = 504
    slug = "run-timeout"
    title = "This took longer than it may"


class RunInterrupted(RunError):
    status = 503
    slug = "run-interrupted"
    title = "The answer was interrupted"


class Retold(LLMStreamError):
    """An error that another process met, as its problem details have it."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail", "")), retry_after=problem.get("retry_after"))
        self.status = int(problem.get("status", 500))
        self._problem = dict(problem)

    def problem(self) -> dict[str, Any]:
        return self._problem
