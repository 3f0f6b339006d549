"""The journal of a process without Redis keeps nothing; what is kept of a run, and when, is the same for any journal.

What processes share is in `test_shared_journal.py`.
"""

from __future__ import annotations

from flask_llmstream.journal import Journal, NullJournal
from tests.conversation import ask, text
from tests.orders import make_run
from tests.puppet import stage


def test_the_null_journal_keeps_nothing():
    journal: Journal = NullJournal()
    run = make_run()
    journal.follow(run)
    assert run.log.readers == 0
    assert journal.release(run.id) == 0
    journal.close()


def test_every_run_is_followed_from_its_start_to_its_end(monkeypatch):
    kept = []
    monkeypatch.setattr(NullJournal, "follow", lambda _, run: kept.append(("follow", run, len(run.log))))
    monkeypatch.setattr(NullJournal, "release", lambda _, run_id: kept.append(("release", run_id)) or 0)
    with stage() as (app, _):
        answer = ask(app)
        run_id = answer.headers["Location"].rsplit("/", 1)[1]
        assert text(answer) == "Hello"
    ((_, run, length), released) = kept
    assert (run.id, length) == (run_id, 1)  # before the function has said anything
    assert released == ("release", run_id)
