"""A text becomes one word."""

from __future__ import annotations

import pytest

from flask_llmstream.testing import Schedule

TASK = "/api/classify"


def test_a_text_has_a_sentiment(client, model):
    model.then(Schedule(json={"sentiment": "positive"}))
    response = client.post(TASK, json={"text": "Lovely."})
    assert response.status_code == 200
    assert response.json == {"sentiment": "positive"}
    asked = model.requests[-1].body
    assert asked["messages"][-1] == {"role": "user", "content": "Lovely."}
    assert 10 in (asked.get("max_tokens"), asked.get("max_completion_tokens"))


def test_another_word_is_asked_for_again(client, model):
    model.then(Schedule(json={"sentiment": "mixed"}), Schedule(json={"sentiment": "neutral"}))
    assert client.post(TASK, json={"text": "Well."}).json == {"sentiment": "neutral"}


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": "x" * 10_001}, {"text": 3}, {"text": "Hm.", "more": 1}])
def test_what_is_no_text_is_refused(client, model, body):
    response = client.post(TASK, json=body)
    assert response.status_code == 422
    assert response.json["errors"]
    assert not model.requests
