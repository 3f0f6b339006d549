"""The client's script, as an application serves it."""

from __future__ import annotations

import mimetypes

import pytest

from flask_llmstream import LLMStream
from tests.conversation import instant, new_app


@pytest.mark.parametrize(
    ("path", "mimetype"),
    [
        ("llmstream.js", "text/javascript"),
        ("llmstream/line.js", "text/javascript"),
        ("llmstream.d.ts", "text/plain"),
    ],
)
def test_its_type_is_ours_whatever_the_machine_takes_it_for(path, mimetype, monkeypatch):
    """Browsers run no module of another type; there are registries in which .js is plain text, and .ts a video."""
    monkeypatch.setattr(mimetypes, "guess_type", lambda *_, **__: ("video/mp2t", None))
    app = new_app()
    LLMStream(app, model=instant())
    with app.test_client().get(f"/api/{path}") as served:
        assert served.status_code == 200
        assert served.mimetype == mimetype
