"""What can go wrong on the way to a model's server, put into this package's words.

Texts of the server go into `diagnosis` alone, which only the log sees, and without any key in them: servers exist
that repeat the key they were given.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai

from ..errors import (
    ContentFiltered,
    LLMStreamError,
    UpstreamAuthenticationFailed,
    UpstreamError,
    UpstreamForbidden,
    UpstreamInsecure,
    UpstreamMalformed,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamUnreachable,
)

FILTER_CODES = {"content_filter", "content_policy_violation"}
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}
"""Sent with 429, though no waiting helps."""
NO_SCHEMAS = "The language model's server does not take the form of answer that was asked for (response_format)."
"""To those who ask for a shape: either it knows no structured outputs, or not all that the schema says. The log has
what it said."""
STATUS_OF_CODE = {"rate_limit_exceeded": 429, "invalid_api_key": 401}
SECRET = re.compile(r"\b(?:sk|pk|rk|gsk|key|xai)-[\w.*-]{4,}|(?<=bearer )\S+", re.IGNORECASE)
DIAGNOSIS_MOST = 2000
"""Characters."""
DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)(ms|s|m|h|d)")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def redact(text: str, key: str | None = None) -> str:
    """The text without the key, or anything else that looks like one, and no longer than a log wants it."""
    if key:
        text = text.replace(key, "[key]")
    # In one line: no server shall write lines of its own into our log.
    return " ".join(SECRET.sub("[key]", text)[:DIAGNOSIS_MOST].split())


def no_connection(error: BaseException, waited: str = "first_token") -> LLMStreamError:
    """No response came: why, as far as the exception and its causes tell.

    :param waited: the time-out that held once there was a connection.
    """
    for link in _causes(error):
        if isinstance(link, LLMStreamError):
            return link
        if isinstance(link, ssl.SSLError):
            return UpstreamInsecure(diagnosis=redact(repr(link)))
        if isinstance(link, httpx2.ConnectTimeout | httpx2.PoolTimeout):
            return UpstreamTimeout("connect")
        if isinstance(link, httpx2.TimeoutException):
            return UpstreamTimeout(waited)
        if isinstance(link, http.client.HTTPException) and not isinstance(link, ConnectionError):
            return UpstreamMalformed(diagnosis=redact(repr(link)))
    return UpstreamUnreachable(diagnosis=redact(repr(error)))


def refused(error: openai.APIStatusError, key: str | None) -> LLMStreamError:
    """It answered with an error status."""
    failure = _of_status(
        error.status_code,
        error.code,
        redact(f"HTTP {error.status_code}: {error.body or error.message}", key),
        retry_after(error.response.headers, error.status_code),
    )
    if isinstance(failure, UpstreamRefused) and "response_format" in str(failure.diagnosis):
        return UpstreamRefused(NO_SCHEMAS, diagnosis=failure.diagnosis)
    return failure


def reported(error: Any, key: str | None) -> LLMStreamError:
    """It reported an error in the middle of its stream.

    :param error: the value of ``error`` in its data: an object, as OpenAI has it, or a text.
    """
    code = str(error.get("code")) if isinstance(error, Mapping) else ""
    status = STATUS_OF_CODE.get(code) or (int(code) if re.fullmatch("[45][0-9]{2}", code) else 500)
    return _of_status(status, code, redact(f"in the stream: {error}", key), None)


def retry_after(headers: Mapping[str, str], status: int, now: datetime | None = None) -> float | None:
    """Seconds after which the server wants to be asked again; None where it does not say.

    `Retry-After` has seconds or a date (RFC 9110, section 10.2.3). OpenAI's rate limits also say when the one that
    is used up is reset.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    if value:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
    if status != 429:
        return None
    resets = [
        _seconds(headers.get(f"x-ratelimit-reset-{what}", ""))
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _of_status(status: int, code: str | None, diagnosis: str, after: float | None) -> LLMStreamError:
    if code in FILTER_CODES:
        return ContentFiltered(diagnosis=diagnosis)
    if status == 429 and code not in QUOTA_CODES:
        return UpstreamRateLimited(retry_after=after, diagnosis=diagnosis)
    # 408 and 409 (a lock that could not be had) pass as those of the 500s do; the official client repeats them too.
    if status >= 500 or status in (408, 409):
        return UpstreamUnavailable(retry_after=after, diagnosis=diagnosis)
    kinds: dict[int, type[UpstreamError]] = {
        401: UpstreamAuthenticationFailed,
        402: UpstreamForbidden,
        403: UpstreamForbidden,
        429: UpstreamForbidden,
    }
    return kinds.get(status, UpstreamRefused)(diagnosis=diagnosis)


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _seconds(duration: str) -> float | None:
    """OpenAI's durations: ``20ms``, ``1s``, ``6m0s``."""
    parts = DURATION.findall(duration)
    return sum(float(number) * SECONDS[unit] for number, unit in parts) if parts else None
