"""The configuration: each key, its default, what it refuses, and what is only warned about."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from flask import Flask

from flask_llmstream import LLMStream
from flask_llmstream.admission import Quota
from flask_llmstream.config import KEYS, PREFIX, Settings
from flask_llmstream.errors import ConfigurationError
from flask_llmstream.providers import Timeouts
from flask_llmstream.values import SocketTimeouts
from tests.conversation import instant, new_app

KNOWN_TIMEOUTS = "must be a mapping with any of connect, first_token, idle, total, ping, quiet, call, write"
SECRET = "whsec_" + "A" * 32


def settings(**config):
    """What an application with this configuration works with."""
    app = new_app(**config)
    LLMStream(app, model=instant())
    return app.extensions["llmstream"]["llmstream"].settings


def test_defaults():
    assert settings() == Settings(
        model=None,
        models=None,
        max_tokens=4096,
        timeouts=Timeouts(connect=5, first_token=60, idle=30, total=600),
        write_timeout=30,
        socket_timeouts=SocketTimeouts(ping=20, quiet=300, call=3600),
        retries=2,
        max_message=32_000,
        max_input=200_000,
        max_log=8 * 1024 * 1024,
        retention=600,
        orphan_grace=20,
        heartbeat=5,
        max_open=None,
        allowed_origins=(),
        allow_anonymous=False,
        redis_url=None,
        redis_prefix="llmstream:",
        max_runs_per_user=None,
        when_busy="reject",
        starts_per_user=None,
        token_budget=None,
        prices={},
        conversation_retention=2_592_000,
        uploads="llmstream-uploads",
        max_upload=20 * 2**20,
        job_retention=86_400,
        concurrency=None,
        webhook_url=None,
        webhook_secrets=(),
        webhook_hosts=(),
        join_identical=True,
    )


def test_there_are_few_keys_and_each_is_a_setting():
    assert len(KEYS) <= 30
    names = [key.name.lower() for key in KEYS]
    assert sorted([*names, "write_timeout", "socket_timeouts"]) == sorted(field.name for field in fields(Settings))
    assert all(key.description.endswith(".") for key in KEYS)


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("MODEL", "gpt-5", "gpt-5"),
        ("MODELS", ["a", "b"], ("a", "b")),
        ("MODELS", "a, b", ("a", "b")),
        ("MAX_TOKENS", 1, 1),
        ("RETRIES", 0, 0),
        ("MAX_MESSAGE", 10, 10),
        ("MAX_INPUT", 10, 10),
        ("MAX_LOG", 1024, 1024),
        ("RETENTION", 0.5, 0.5),
        ("ORPHAN_GRACE", 0, 0),
        ("ORPHAN_GRACE", None, None),
        ("HEARTBEAT", 0.1, 0.1),
        ("MAX_OPEN", 3, 3),
        ("ALLOWED_ORIGINS", ["https://App.example.com"], ("https://app.example.com",)),
        ("ALLOWED_ORIGINS", "https://a.example,http://b.example:8080", ("https://a.example", "http://b.example:8080")),
        ("ALLOWED_ORIGINS", "*", ("*",)),
        ("ALLOW_ANONYMOUS", True, True),
        ("REDIS_URL", "redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0"),
        ("REDIS_PREFIX", "shop:", "shop:"),
        ("MAX_RUNS_PER_USER", 3, 3),
        ("WHEN_BUSY", "join", "join"),
        ("STARTS_PER_USER", "30/minute", Quota(30, 60)),
        ("STARTS_PER_USER", "5 per 10 minutes", Quota(5, 600)),
        ("TOKEN_BUDGET", "100000/day", Quota(100_000, 86_400)),
        ("TOKEN_BUDGET", "1_000_000 per week", Quota(1_000_000, 604_800)),
        ("UPLOADS", "/var/lib/app/uploads", "/var/lib/app/uploads"),
        ("UPLOADS", Path("uploads"), "uploads"),
        ("MAX_UPLOAD", 1, 1),
        ("JOB_RETENTION", 60, 60),
        ("CONCURRENCY", 5, 5),
        ("CONCURRENCY", None, None),
        ("WEBHOOK_SECRETS", SECRET, (SECRET,)),
        ("WEBHOOK_HOSTS", "10.0.0.0/8,hooks.internal", ("10.0.0.0/8", "hooks.internal")),
        ("JOIN_IDENTICAL", False, False),
    ],
    ids=str,
)
def test_a_key_is_read(key, value, read):
    assert getattr(settings(**{PREFIX + key: value}), key.lower()) == read


def test_time_outs_are_given_one_by_one():
    read = settings(LLMSTREAM_TIMEOUTS={"idle": 3, "total": None, "write": 4})
    assert read.timeouts == Timeouts(connect=5, first_token=60, idle=3, total=None)
    assert read.write_timeout == 4
    assert settings(LLMSTREAM_TIMEOUTS={"write": None}).write_timeout is None


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("MODEL", "", "must be a string"),
        ("MODEL", 4, "must be a string"),
        ("MODELS", 4, "must be a list of strings"),
        ("MODELS", ["a", 4], "must be a list of strings"),
        ("MAX_TOKENS", 0, "must be a whole number from 1"),
        ("MAX_TOKENS", None, "must be a whole number from 1"),
        ("MAX_TOKENS", "4096", "must be a whole number from 1"),
        ("MAX_TOKENS", True, "must be a whole number from 1"),
        ("MAX_TOKENS", 1.5, "must be a whole number from 1"),
        ("TIMEOUTS", 30, KNOWN_TIMEOUTS),
        ("TIMEOUTS", {"read": 30}, KNOWN_TIMEOUTS),
        ("TIMEOUTS", {"idle": 0}, "must be a number of seconds above 0"),
        ("RETRIES", -1, "must be a whole number from 0"),
        ("MAX_MESSAGE", 0, "must be a whole number from 1"),
        ("MAX_INPUT", 0, "must be a whole number from 1"),
        ("MAX_LOG", 0, "must be a whole number from 1"),
        ("MAX_LOG", 1023, "must be a whole number of bytes from 1024"),
        ("RETENTION", 0, "must be a number of seconds above 0"),
        ("RETENTION", None, "must be a number of seconds"),
        ("JOB_RETENTION", 0, "must be a number of seconds above 0"),
        ("CONCURRENCY", 0, "must be a whole number from 1"),
        ("WEBHOOK_URL", 4, "must be a string"),
        ("WEBHOOK_HOSTS", [4], "must be a list of strings"),
        ("ORPHAN_GRACE", -1, "must be a number of seconds"),
        ("ORPHAN_GRACE", "20", "must be a number of seconds"),
        ("ORPHAN_GRACE", float("nan"), "must be a number of seconds"),
        ("HEARTBEAT", 0, "must be a number of seconds above 0"),
        ("HEARTBEAT", float("inf"), "must be a number of seconds"),
        ("MAX_OPEN", 0, "must be a whole number from 1"),
        ("ALLOWED_ORIGINS", ["app.example.com"], "must be origins such as https://app.example.com"),
        ("ALLOWED_ORIGINS", ["https://app.example.com/"], "must be origins such as https://app.example.com"),
        ("ALLOWED_ORIGINS", 4, "must be a list of strings"),
        ("ALLOW_ANONYMOUS", "yes", "must be true or false"),
        ("REDIS_URL", 4, "must be a string"),
        ("REDIS_PREFIX", "", "must be a string"),
        ("REDIS_PREFIX", "llm stream:", "must be a string of visible characters"),
        ("MAX_RUNS_PER_USER", 0, "must be a whole number from 1"),
        ("WHEN_BUSY", "wait", "must be one of reject, replace, join"),
        ("STARTS_PER_USER", 30, "must be a number a second, minute"),
        ("STARTS_PER_USER", "many a minute", "must be a number a second, minute"),
        ("STARTS_PER_USER", "0/minute", "must be a number a second, minute"),
        ("TOKEN_BUDGET", "1000/0 days", "must be a number a second, minute"),
        ("TOKEN_BUDGET", "1000/fortnight", "must be a number a second, minute"),
        ("UPLOADS", "", "must be the path of a folder"),
        ("UPLOADS", None, "must be the path of a folder"),
        ("MAX_UPLOAD", 0, "must be a whole number from 1"),
        ("JOIN_IDENTICAL", 1, "must be true or false"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_a_sentence(key, value, sentence):
    with pytest.raises(ConfigurationError) as refused:
        settings(**{PREFIX + key: value})
    assert str(refused.value).startswith(f"{PREFIX}{key} {sentence}")
    assert "; it is " in str(refused.value)


def test_an_address_that_is_none_is_refused_and_its_password_is_not_told():
    with pytest.raises(ConfigurationError, match="LLMSTREAM_REDIS_URL must be an address such as redis://") as refused:
        settings(LLMSTREAM_REDIS_URL="http://:sk-secret@127.0.0.1")
    assert "sk-secret" not in str(refused.value)


def test_each_application_has_its_own():
    llm = LLMStream(model=instant())
    apps = new_app(LLMSTREAM_RETRIES=1), new_app(LLMSTREAM_RETRIES=7)
    for app in apps:
        llm.init_app(app)
    assert [llm.record(app).settings.retries for app in apps] == [1, 7]


def test_the_environment_carries_flask_s_prefix(monkeypatch):
    monkeypatch.setenv("FLASK_LLMSTREAM_MODEL", "house")
    monkeypatch.setenv("FLASK_LLMSTREAM_MODELS", "house,best")
    monkeypatch.setenv("FLASK_LLMSTREAM_MAX_TOKENS", "7")
    monkeypatch.setenv("FLASK_LLMSTREAM_ORPHAN_GRACE", "null")
    monkeypatch.setenv("FLASK_LLMSTREAM_TIMEOUTS__idle", "3")
    monkeypatch.setenv("FLASK_LLMSTREAM_ALLOWED_ORIGINS", '["https://app.example.com"]')
    monkeypatch.setenv("FLASK_LLMSTREAM_ALLOW_ANONYMOUS", "true")
    app = Flask(__name__)
    app.config.from_prefixed_env()
    LLMStream(app, model=instant())
    read = app.extensions["llmstream"]["llmstream"].settings
    assert (read.model, read.models, read.max_tokens, read.orphan_grace) == ("house", ("house", "best"), 7, None)
    assert read.timeouts.idle == 3
    assert read.allowed_origins == ("https://app.example.com",)
    assert read.allow_anonymous is True


@pytest.mark.parametrize("key", ["MODEL", "ALLOW_ANONYMOUS", "TIMEOUTS__idle"])
def test_a_bare_name_in_the_environment_is_not_read_and_warned_about(monkeypatch, caplog, key):
    monkeypatch.setenv(f"LLMSTREAM_{key}", "3")
    assert settings() == settings()
    assert f"LLMSTREAM_{key} is not read: Flask takes it as FLASK_LLMSTREAM_{key}" in caplog.text


def test_a_key_that_does_not_exist_is_warned_about(caplog):
    settings(LLMSTREAM_MAX_TOKEN=7)
    assert "there is no configuration key LLMSTREAM_MAX_TOKEN" in caplog.text


@pytest.mark.parametrize(
    ("config", "least"),
    [
        ({}, None),
        ({"LLMSTREAM_ORPHAN_GRACE": 17.5}, None),
        ({"LLMSTREAM_ORPHAN_GRACE": 17}, "17.5"),
        ({"LLMSTREAM_HEARTBEAT": 10}, "30"),
        ({"LLMSTREAM_HEARTBEAT": 10, "LLMSTREAM_ORPHAN_GRACE": 30}, None),
        ({"LLMSTREAM_ORPHAN_GRACE": 0}, None),  # on purpose: at once
        ({"LLMSTREAM_ORPHAN_GRACE": None}, None),
    ],
    ids=str,
)
def test_a_grace_that_clients_cannot_keep_is_warned_about(caplog, config, least):
    settings(**config)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (0 if least is None else 1)
    if least is not None:
        assert warnings[0].startswith("LLMSTREAM_ORPHAN_GRACE is")
        assert warnings[0].endswith(f"use at least {least}")


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch):
    for name in [name for name in os.environ if "LLMSTREAM_" in name]:
        monkeypatch.delenv(name)
