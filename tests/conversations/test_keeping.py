"""Conversations in the store: listed, named, deleted, limited, lost and expired."""

from __future__ import annotations

from contextlib import closing
from time import monotonic, time

import pytest

from flask_llmstream import conversations as module
from flask_llmstream.conversations import Conversations
from flask_llmstream.errors import ConversationNotFound, HistoryFull, RunInterrupted, StoreUnavailable
from flask_llmstream.run import Outcome
from flask_llmstream.store import RedisStore
from flask_llmstream.store.connection import POOL, RESERVED
from tests.conversations.turns import ANN, BOB, DAY, OTHER, ROOM, TALK, end, left, messages, run_of, said, turn
from tests.puppet import eventually

# The list


def test_the_newest_first_page_by_page(kept):
    begun = [kept.begin(ANN, f"Number {number}").id for number in range(5)]
    last = max(kept.read(ANN, name)[0].updated_at for name in begun)
    eventually(lambda: time() > last + 0.001)
    turn(kept, "r1", "Once more", "Yes", conversation=begun[0])
    page, more = kept.newest(ANN, limit=2)
    assert (page[0].id, more) == (begun[0], True), "a message brings it to the top"
    names = {conversation.id for conversation in page}
    while more:
        page, more = kept.newest(ANN, limit=2, before=page[-1].id)
        names |= {conversation.id for conversation in page}
    assert names == set(begun)
    with pytest.raises(ConversationNotFound):
        kept.newest(ANN, limit=2, before=OTHER)


def test_one_without_a_title_is_called_as_its_first_message_begins(kept):
    turn(kept, "r1", "  What is\nthe time?  ", "Noon")
    turn(kept, "r2", "And now?", "Noon", parent="r1")
    assert kept.read(ANN, TALK)[0].title == "What is the time?"
    turn(kept, "r3", "word " * 40, "Yes", conversation=OTHER)
    title = kept.read(ANN, OTHER)[0].title
    assert title == "word " * 14 + "word…"
    turn(kept, "r4", "x" * 100, "Yes", conversation="one-long-word-only")
    assert kept.read(ANN, "one-long-word-only")[0].title == "x" * 79 + "…"


def test_a_title_that_was_given_stays(kept):
    name = kept.begin(ANN, "Times").id
    turn(kept, "r1", "What is the time?", "Noon", conversation=name)
    assert kept.read(ANN, name)[0].title == "Times"
    assert kept.rename(ANN, name, "Zeiten: é").title == "Zeiten: é"
    assert kept.read(ANN, name)[0].title == "Zeiten: é"


def test_renaming_is_no_message(kept):
    before = kept.begin(ANN, "Times")
    after = kept.rename(ANN, before.id, "Zeiten")
    assert after.updated_at == before.updated_at


def test_there_is_nothing_to_rename_or_to_delete_where_there_is_nothing(kept, store):
    with pytest.raises(ConversationNotFound):
        kept.rename(ANN, TALK, "Title")
    with pytest.raises(ConversationNotFound):
        kept.delete(ANN, TALK)
    with pytest.raises(ConversationNotFound):
        kept.read(ANN, TALK)
    assert store.command("DBSIZE") == 0


def test_the_same_name_with_another_owner_is_another_conversation(kept):
    turn(kept, "r1", "Ann's", "1")
    turn(kept, "r2", "Bob's", "2", owner=BOB)
    assert said(kept) == ["Ann's", "1"]
    assert said(kept, owner=BOB) == ["Bob's", "2"]
    kept.delete(BOB, TALK)
    assert said(kept) == ["Ann's", "1"]
    assert [len(kept.newest(owner, limit=9)[0]) for owner in (ANN, BOB)] == [1, 0]


# Deleting


def test_an_answer_that_ends_later_does_not_bring_it_back(kept):
    run = run_of("r1", "Hello")
    kept.opened(run)
    kept.delete(ANN, TALK)
    end(kept, run, "Hi")
    kept.save(left(run, "Hi"), "failed", None)
    with pytest.raises(ConversationNotFound):
        kept.read(ANN, TALK)
    assert kept.newest(ANN, limit=9) == ([], False)


def test_nothing_is_added_to_it_either(kept):
    turn(kept, "r1", "Hello", "Hi")
    kept.delete(ANN, TALK)
    with pytest.raises(ConversationNotFound):
        said(kept)
    with pytest.raises(ConversationNotFound):
        kept.opened(run_of("r2", "Hello again", parent="r1"))


def test_deleting_may_be_repeated_and_names_the_run_that_answers(kept, store):
    turn(kept, "r1", "Hello", "Hi")
    slot = kept._keys(ANN, TALK)[-1]
    store.command("SET", slot, "r2")
    assert kept.read(ANN, TALK)[2] == "r2"
    assert kept.delete(ANN, TALK) == kept.delete(ANN, TALK) == "r2"
    store.command("DEL", slot)
    assert kept.delete(ANN, TALK) is None


# What is lost, and what is refused


def test_an_end_waits_no_longer_for_a_connection_than_its_readers_may():
    """They hear of it within two seconds, whatever Redis does, also where many runs end at once."""
    with closing(RedisStore("redis://127.0.0.1:1/0", "llmstream:")) as store:
        for _ in range(POOL - RESERVED):
            store._places.acquire()
        for _ in range(RESERVED):
            store._reserved.acquire()
        begun = monotonic()
        with pytest.raises(StoreUnavailable):
            Conversations(store, retention=DAY).save(run_of("r1", "Hello"), "completed", None)
        assert monotonic() - begun < 1.0


def test_an_exchange_whose_conversation_redis_has_lost_is_put_back(kept, store):
    turn(kept, "r1", "One", "1")
    run = run_of("r2", "Two", parent="r1")
    kept.opened(run)
    store.command("FLUSHALL")
    end(kept, run, "2")
    assert said(kept) == ["Two", "2"]
    assert kept.read(ANN, TALK)[0].title == "Two"


def test_a_start_that_failed_leaves_no_conversation(kept):
    run = run_of("r1", "One")
    run.forgotten = True
    end(kept, run, outcome=Outcome(state="failed", error=RunInterrupted()))
    with pytest.raises(ConversationNotFound):
        kept.read(ANN, TALK)


def test_a_start_that_failed_leaves_no_messages_either(kept):
    turn(kept, "r1", "One", "1")
    end(kept, run_of("r2", "Two", parent="r1"), outcome=Outcome(state="failed", error=RunInterrupted()))
    assert said(kept) == ["One", "1"]


def test_messages_have_a_limit_that_loses_nothing(kept, monkeypatch):
    monkeypatch.setattr(module, "MOST_MESSAGES", 5)
    turn(kept, "r1", "One", "1")
    run = run_of("r2", "Two", parent="r1")
    kept.opened(run)
    refused = run_of("r3", "Three", parent="r2")
    with pytest.raises(HistoryFull) as full:
        kept.opened(refused)
    problem = full.value.problem()
    assert (problem["status"], problem["limit"], problem["most"]) == (409, "messages", 5)
    end(kept, refused, outcome=Outcome(state="failed", error=RunInterrupted()))
    end(kept, run, "2")
    assert said(kept) == ["One", "1", "Two", "2"]


def test_the_size_of_a_conversation_has_a_limit_that_its_last_answer_may_exceed(kept, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 2000)
    turn(kept, "r1", "One", "x" * 3000)
    assert messages(kept)[1].content == "x" * 3000
    with pytest.raises(HistoryFull) as full:
        kept.opened(run_of("r2", "Two", parent="r1"))
    assert full.value.problem()["limit"] == "size"


def test_the_size_is_that_of_what_is_kept(kept, store):
    run = turn(kept, "r1", "One", "x" * 3000)
    kept.save(run, "completed", None)
    record, values, *_ = kept._keys(ANN, TALK)
    real = sum(map(len, store.command("HVALS", values)))
    assert int(store.command("HGET", record, "size")) == real


def test_an_owner_has_so_many_conversations_and_no_more(kept, monkeypatch):
    monkeypatch.setattr(module, "MOST_CONVERSATIONS", 2)
    first = kept.begin(ANN, None).id
    turn(kept, "r1", "One", "1")
    with pytest.raises(HistoryFull) as full:
        kept.begin(ANN, None)
    assert full.value.problem()["limit"] == "conversations"
    with pytest.raises(HistoryFull):
        kept.opened(run_of("r2", "Two", conversation=OTHER))
    turn(kept, "r3", "Three", "3", parent="r1")
    kept.begin(BOB, None)
    kept.delete(ANN, first)
    kept.begin(ANN, None)


# Time


def test_everything_that_is_written_expires(kept, store):
    turn(kept, "r1", "One", "1")
    kept.begin(ANN, "Empty")
    kept.rename(ANN, TALK, "Title")
    kept.delete(BOB, kept.begin(BOB, None).id)
    keys = store.command("KEYS", "*")
    assert len(keys) == 5
    assert all(0 < store.command("PTTL", key) <= DAY * 1000 for key in keys)


def test_a_conversation_expires_after_its_last_message(store):
    kept = Conversations(store, retention=0.2)
    turn(kept, "r1", "One", "1")
    name = kept.begin(ANN, "Times").id

    def gone():
        try:
            kept.rename(ANN, name, "Zeiten")
        except ConversationNotFound:
            return True

    eventually(gone)
    eventually(lambda: not kept.newest(ANN, limit=9)[0])
    assert kept.recall(ANN, TALK, None, room=ROOM, so_far=str) == ("", [])


def test_what_has_expired_counts_no_more(store, monkeypatch):
    monkeypatch.setattr(module, "MOST_CONVERSATIONS", 2)
    kept = Conversations(store, retention=1)
    kept.begin(ANN, "Times")
    run = turn(kept, "r1", "One", "1")

    def begun():
        kept.save(run, "completed", None)  # this one goes on
        try:
            return kept.begin(ANN, "Zeiten")
        except HistoryFull:
            return None

    eventually(begun)
    assert said(kept) == ["One", "1"]
