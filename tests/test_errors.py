"""The error tree: drawn at the top of its file, and each kind a problem (RFC 9457)."""

import json
import re

import pytest

from flask_llmstream import errors
from flask_llmstream.errors import (
    InvalidAnswer,
    LimitReached,
    LLMStreamError,
    Retold,
    RunCancelled,
    UpstreamTimeout,
    UpstreamUnavailable,
)

LEAF = re.compile(r"^(?P<indent>[│ ├└─]*)(?P<name>[A-Z]\w+) +(?P<status>\d{3})", re.MULTILINE)


def kinds(kind: type[LLMStreamError] = LLMStreamError) -> list[type[LLMStreamError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in kinds(child))]


def make(kind: type[LLMStreamError], **more: object) -> LLMStreamError:
    if kind is LimitReached:
        return LimitReached("runs", "You have enough.", **more)
    if kind is InvalidAnswer:
        return InvalidAnswer("It does not fit.", errors={"total": ["Not a number."]}, attempts=3, **more)
    return kind("idle", **more) if kind is UpstreamTimeout else kind(**more)  # type: ignore[arg-type]


# Applications may derive kinds of their own; these are the package's. One of them stands for any other.
KINDS = [kind for kind in kinds() if kind.__module__ == errors.__name__ and kind is not Retold]


def test_the_drawing_is_the_tree():
    drawn = [
        (len(match["indent"]) // 4, match["name"], int(match["status"])) for match in LEAF.finditer(errors.__doc__)
    ]
    depth = len(LLMStreamError.__mro__)
    real = [(len(kind.__mro__) - depth, kind.__name__, kind.status) for kind in KINDS]
    assert sorted(drawn) == sorted(real)
    parents = []
    for level, name, _ in drawn:
        del parents[level:]
        if parents:
            assert getattr(errors, name).__base__ is getattr(errors, parents[-1])
        parents.append(name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_a_problem(kind):
    problem = make(kind).problem()
    assert problem["type"] == f"urn:problem-type:flask-llmstream:{kind.slug}"
    assert (problem["title"], problem["status"]) == (kind.title, kind.status)
    assert problem["detail"].endswith(".")
    assert json.loads(json.dumps(problem)) == problem


@pytest.mark.parametrize("attribute", ["slug", "title"])
def test_no_two_kinds_are_told_apart_by_their_class_alone(attribute):
    values = [getattr(kind, attribute) for kind in KINDS]
    assert len(values) == len(set(values))


def test_what_clients_may_know_is_in_the_problem_and_what_they_may_not_is_not():
    error = UpstreamUnavailable("Come back later.", retry_after=3, diagnosis="sk-secret", region="eu")
    assert error.problem() == {
        "type": "urn:problem-type:flask-llmstream:upstream-unavailable",
        "title": "The language model's server has a fault",
        "status": 502,
        "detail": "Come back later.",
        "retry_after": 3,
        "region": "eu",
    }
    assert error.diagnosis == "sk-secret"
    assert "sk-secret" not in str(error)


def test_without_a_time_to_come_back_the_problem_names_none():
    assert "retry_after" not in UpstreamUnavailable().problem()
    assert UpstreamUnavailable(retry_after=0).problem()["retry_after"] == 0


@pytest.mark.parametrize("phase", ["connect", "first_token", "idle", "total"])
def test_a_time_out_says_which(phase):
    error = UpstreamTimeout(phase)
    assert error.phase == error.problem()["phase"] == phase
    assert phase.replace("_", " ") in error.detail


def test_what_passes_may_be_tried_again_and_nothing_else():
    assert {kind.__name__ for kind in KINDS if kind.retryable} == {
        "UpstreamRateLimited",
        "UpstreamUnavailable",
        "UpstreamUnreachable",
        "UpstreamTruncated",
        "WebhookFailed",
    }


def test_a_stop_is_no_error_that_a_function_could_swallow():
    assert not issubclass(RunCancelled, Exception)


@pytest.mark.parametrize("limit", ["runs", "conversation", "starts", "tokens"])
def test_a_limit_says_which(limit):
    error = LimitReached(limit, "Not so fast.", retry_after=3)
    assert error.limit == limit
    problem = error.problem()
    assert problem == problem | {"limit": limit, "retry_after": 3, "status": 429}


def test_an_error_that_another_process_met_is_told_as_it_was_told_there():
    met = LimitReached("tokens", "No more today.", retry_after=60)
    retold = Retold(json.loads(json.dumps(met.problem())))
    assert retold.problem() == met.problem()
    assert (retold.status, retold.detail, retold.retry_after) == (429, "No more today.", 60)


def test_one_of_which_little_is_known_is_still_an_error():
    """Another process may be of another version of this package."""
    assert (Retold({}).status, Retold({}).detail.endswith(".")) == (500, True)


def test_it_stands_in_the_drawing_though_it_has_no_status_of_its_own():
    assert "── Retold " in errors.__doc__
