"""Turns and branches in the store: how they begin and end, who has the last word, what a model is told of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_llmstream import conversations as module
from flask_llmstream.conversations import Conversations, branch
from flask_llmstream.errors import ConversationNotFound, InvalidInput, RunInterrupted
from flask_llmstream.events import Usage
from flask_llmstream.run import Outcome
from flask_llmstream.store import EmbeddedStore
from tests.conversations.turns import ANN, DAY, OTHER, ROOM, TALK, end, left, messages, run_of, said, turn

# A turn


def test_a_run_adds_a_question_and_an_answer_in_progress(kept):
    kept.opened(run_of("r1", "What is the time?"))
    question, answer = messages(kept)
    assert (question.id, question.parent, question.role) == ("r1.q", None, "user")
    assert question.content == "What is the time?"
    assert (answer.id, answer.parent, answer.role, answer.content) == ("r1", "r1.q", "assistant", "")
    assert (question.run, question.status, answer.run, answer.status) == ("r1", "completed", "r1", "in_progress")
    assert question.created_at == answer.created_at == 1000.0
    assert answer.ended_at is None


def test_its_end_is_kept_with_what_it_cost(kept):
    run = run_of("r1", "Hello")
    kept.opened(run)
    end(kept, run, "Hel", "lo", usage=Usage(3, 2))
    _, answer = messages(kept)
    assert (answer.content, answer.status, answer.finish_reason) == ("Hello", "completed", "stop")
    assert answer.usage == Usage(3, 2)
    assert answer.ended_at == run.ended_at


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(state="cancelled"), None),
        (Outcome(state="failed", error=RunInterrupted()), None),
        (Outcome(state="incomplete", finish_reason="length"), "length"),
    ],
    ids=lambda value: getattr(value, "state", ""),
)
def test_a_stopped_or_broken_answer_is_kept_as_far_as_it_got_and_marked(kept, outcome, reason):
    run = run_of("r1", "Hello")
    kept.opened(run)
    end(kept, run, "Hel", outcome=outcome)
    _, answer = messages(kept)
    assert (answer.content, answer.status, answer.finish_reason) == ("Hel", outcome.state, reason)


def test_both_steps_may_be_repeated(kept):
    run = run_of("r1", "Hello")
    kept.opened(run)
    kept.opened(run)
    end(kept, run, "Hi")
    kept.save(run, "completed", None)
    kept.opened(run)
    assert [(message.id, message.content) for message in messages(kept)] == [("r1.q", "Hello"), ("r1", "Hi")]
    assert messages(kept)[1].status == "completed"


def test_a_run_without_a_conversation_leaves_nothing(kept, store):
    run = run_of("r1", "Hello", conversation=None)
    kept.opened(run)
    end(kept, run, "Hi")
    assert store.command("DBSIZE") == 0


def test_any_characters(kept):
    text = 'é "quoted"\n\x01 \U0001f600 { 3 in_progress } \\'
    turn(kept, "r1", text, text[::-1])
    assert [message.content for message in messages(kept)] == [text, text[::-1]]
    assert said(kept) == [text, text[::-1]]


# Who has the last word


def test_another_process_says_what_becomes_of_an_answer_that_was_left(kept):
    run = run_of("r1", "Hello")
    kept.opened(run)
    kept.save(left(run, "He"), "failed", Usage(3, 1, estimated=True))
    _, answer = messages(kept)
    assert (answer.content, answer.status, answer.usage) == ("He", "failed", Usage(3, 1, estimated=True))
    assert answer.ended_at is not None


def test_what_the_writer_said_is_not_replaced_by_hearsay(kept):
    run = turn(kept, "r1", "Hello", "Hi there")
    kept.save(left(run, "Hi"), "failed", None)
    assert (messages(kept)[1].content, messages(kept)[1].status) == ("Hi there", "completed")


def test_a_writer_that_was_given_up_too_early_still_says_how_it_ended(kept):
    run = run_of("r1", "Hello")
    kept.opened(run)
    kept.save(left(run, "Hi"), "failed", None)
    end(kept, run, "Hi there")
    assert (messages(kept)[1].content, messages(kept)[1].status) == ("Hi there", "completed")


def test_one_that_stopped_as_it_was_given_up_does_not(kept):
    """That it was told to stop by then is no news for whoever reads the answer: nobody wanted it to."""
    run = run_of("r1", "Hello")
    kept.opened(run)
    kept.save(left(run, "Hi"), "failed", None)
    end(kept, run, "Hi", outcome=Outcome(state="cancelled"))
    assert messages(kept)[1].status == "failed"


# The tree


def test_each_message_follows_the_last_one(kept):
    turn(kept, "r1", "One", "1")
    parent, _ = kept.recall(ANN, TALK, None, room=ROOM, so_far=str)
    assert parent == "r1"
    turn(kept, "r2", "Two", "2", parent=parent)
    assert said(kept) == ["One", "1", "Two", "2"]
    assert [message.parent for message in messages(kept)] == [None, "r1.q", "r1", "r2.q"]
    assert kept.read(ANN, TALK)[0].head == "r2"


def test_branches_are_kept_side_by_side(kept):
    turn(kept, "r1", "One", "1")
    turn(kept, "r2", "Two", "2", parent="r1")
    turn(kept, "r3", "Two again", "2'", parent="r1")
    assert said(kept) == ["One", "1", "Two again", "2'"], "what was added last is gone on with"
    assert said(kept, "r2") == ["One", "1", "Two", "2"]
    assert said(kept, "r1") == ["One", "1"]
    assert said(kept, "r2.q") == ["One", "1", "Two"], "a question can be a parent, too"
    everything = messages(kept)
    assert [message.id for message in everything] == ["r1.q", "r1", "r2.q", "r2", "r3.q", "r3"]
    assert [message.id for message in branch(everything, "r3")] == ["r1.q", "r1", "r3.q", "r3"]


def test_a_question_may_begin_anew(kept):
    turn(kept, "r1", "One", "1")
    assert kept.recall(ANN, TALK, "", room=ROOM, so_far=str) == ("", [])
    turn(kept, "r2", "Another one", "1'", parent="")
    assert said(kept) == ["Another one", "1'"]
    assert [message.parent for message in messages(kept)] == [None, "r1.q", None, "r2.q"]


def test_a_parent_that_is_not_there_is_a_mistake(kept):
    turn(kept, "r1", "One", "1")
    with pytest.raises(InvalidInput) as refused:
        said(kept, "r2")
    assert set(refused.value.problem()["errors"]) == {"parent"}
    with pytest.raises(ConversationNotFound):
        said(kept, "r1", conversation=OTHER)


def test_a_conversation_that_nobody_has_seen_begins(kept):
    assert kept.recall(ANN, TALK, None, room=ROOM, so_far=str) == ("", [])


def test_an_answer_in_progress_is_told_as_far_as_it_is(kept):
    kept.opened(run_of("r1", "One"))
    assert said(kept) == ["One", "so far of r1"]


def test_an_answer_of_which_nothing_came_is_none(kept):
    run = run_of("r1", "One")
    kept.opened(run)
    end(kept, run, outcome=Outcome(state="failed", error=RunInterrupted()))
    assert said(kept) == ["One"]


# What a model is told


@pytest.mark.parametrize(
    ("room", "left_of_it"),
    [
        (40, ["a" * 10, "b" * 10, "c" * 10, "d" * 10]),
        (39, ["c" * 10, "d" * 10]),
        (30, ["c" * 10, "d" * 10]),
        (20, ["c" * 10, "d" * 10]),
        (19, []),
        (0, []),
    ],
)
def test_the_oldest_turns_are_left_out_as_a_whole(kept, room, left_of_it):
    turn(kept, "r1", "a" * 10, "b" * 10)
    turn(kept, "r2", "c" * 10, "d" * 10, parent="r1")
    assert said(kept, room=room) == left_of_it
    assert len(messages(kept)) == 4, "and kept all the same"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    turns=st.lists(st.tuples(st.text("aé\x01", min_size=1, max_size=30), st.text("b", max_size=30)), max_size=8),
    room=st.integers(0, 200),
)
def test_as_many_of_the_latest_turns_as_there_is_room_for(turns, room):
    store = EmbeddedStore()
    kept = Conversations(store, retention=DAY)
    for number, (question, answer) in enumerate(turns):
        turn(kept, f"r{number}", question, answer, parent=f"r{number - 1}" if number else "")
    expected: list[str] = []
    for question, answer in reversed(turns):
        longer = [text for text in (question, answer) if text] + expected
        if sum(map(len, longer)) > room:
            break
        expected = longer
    assert said(kept, room=room) == expected
    store.close()


def test_what_can_not_be_told_is_not_read_either(kept, store, monkeypatch):
    """A long conversation costs a start no more than what the model is told of it."""
    monkeypatch.setattr(module, "MOST_MESSAGES", 10)
    for number in range(4):
        turn(kept, f"r{number}", "x" * 10_000, "y" * 10_000, parent=f"r{number - 1}" if number else "")
    record, values, _, deleted, _ = kept._keys(ANN, TALK)
    _, _, path = store.call("recall", [record, values, deleted], ["head", 15_000])
    assert len(path) == 2
