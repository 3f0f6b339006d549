"""What is declared: which options a job has, and which are refused where they stand."""

import pytest

from flask_llmstream.errors import ConfigurationError
from flask_llmstream.features import JobFeature, ReplyFeature, StreamFeature
from tests.puppet import stage


def nothing(run):
    return None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attempts": 0}, "attempts= takes"),
        ({"attempts": "3"}, "attempts= takes"),
        ({"timeout": 0}, "timeout= takes"),
        ({"timeout": "10 min"}, "timeout= takes"),
        ({"max_tokens": 0}, "max_tokens= takes"),
        ({"when_busy": "wait"}, "when_busy= takes"),
        ({"status": "/api/work/status"}, "status= takes a rule with <run_id>"),
        ({"status": "/api/work/<kind>/<run_id>"}, "/api/work has no kind for"),
        ({"webhook": "https://receiver.example/"}, "webhook= needs LLMSTREAM_WEBHOOK_SECRETS"),
        ({"queue": "Default"}, "queue= takes a name"),
        ({"queue": ""}, "queue= takes a name"),
        ({"queue": "a:b"}, "queue= takes a name"),
        ({"queue": "x" * 65}, "queue= takes a name"),
        ({"retry_on": [ValueError()]}, "retry_on= takes exception classes"),
        ({"retry_on": [KeyboardInterrupt]}, "retry_on= takes exception classes"),
        ({"input": dict}, "input= takes a marshmallow Schema class"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_where_it_stands(options, said):
    with stage() as (app, llm):
        with pytest.raises(ConfigurationError, match=f"nothing: {said}"):
            llm.job("/api/work", **options)(nothing)
        assert app.test_client().post("/api/work", json={}).status_code == 404


def test_what_is_left_out_has_a_value_that_suits_most(app_and_llm):
    app, llm = app_and_llm
    llm.job("/api/work")(nothing)
    feature = llm.record(app).feature("nothing")
    assert isinstance(feature, JobFeature)
    assert (feature.attempts, feature.timeout, feature.queue, feature.retry_on) == (3, 600.0, "default", ())
    assert (feature.status, feature.result, feature.webhook, feature.methods) == (None, None, None, ("POST",))


@pytest.fixture
def app_and_llm():
    with stage() as both:
        yield both


def test_all_kinds_of_features_share_one_room_of_names_and_rules(app_and_llm):
    _, llm = app_and_llm
    llm.job("/api/work")(nothing)
    for declare in (llm.job, llm.stream):
        with pytest.raises(ConfigurationError, match="there is already nothing on /api/work"):
            declare("/api/other")(nothing)
    with pytest.raises(ConfigurationError, match="there is already nothing on /api/work"):
        llm.reply("/api/work", max_tokens=5)(lambda run: None)


def test_a_job_is_started_by_post_alone(app_and_llm):
    app, llm = app_and_llm
    llm.job("/api/work")(nothing)
    assert app.test_client().get("/api/work").status_code == 405


def test_the_function_is_returned_unchanged(app_and_llm):
    _, llm = app_and_llm
    assert llm.job("/api/work")(nothing) is nothing
    assert llm.reply("/api/other", max_tokens=5)(len) is len


def test_an_async_function_is_refused(app_and_llm):
    _, llm = app_and_llm

    async def later(run):
        pass

    for declare in (llm.job("/api/later"), llm.reply("/api/later", max_tokens=5)):
        with pytest.raises(ConfigurationError, match="later is async"):
            declare(later)


def test_which_methods_a_kind_answers():
    assert StreamFeature.METHODS == ("GET", "POST")
    assert JobFeature.METHODS == ReplyFeature.METHODS == ("POST",)
