"""The journal of a process without Redis: nothing is kept, so nothing is found."""

from __future__ import annotations

from flask_llmstream.journal import Journal, NullJournal
from flask_llmstream.log import Log
from tests.conversation import ask, text
from tests.puppet import stage


def test_the_null_journal_keeps_nothing_and_promises_no_more():
    journal: Journal = NullJournal()
    log = Log(1000)
    journal.follow("a", log)
    log.append(b"{}")
    assert journal.end("a", b'{"done":true}') is True
    assert journal.find("a") is None
    assert log.readers == 0


def test_every_run_is_journalled_from_its_start_to_its_end(monkeypatch):
    kept = []
    monkeypatch.setattr(NullJournal, "follow", lambda _, run_id, log: kept.append(("follow", run_id, len(log))))
    monkeypatch.setattr(NullJournal, "end", lambda _, run_id, terminal: kept.append(("end", run_id, terminal)) or True)
    with stage() as (app, _):
        answer = ask(app)
        run_id = answer.headers["Location"].rsplit("/", 1)[1]
        assert text(answer) == "Hello"
    (begun, ended) = kept
    assert begun == ("follow", run_id, 1)  # before the function has said anything
    assert ended[:2] == ("end", run_id)
    assert ended[2].startswith(b'{"done":true')
