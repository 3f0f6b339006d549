"""Whose words are whose, in a relayed call."""

from flask_llmstream.utterances import LATEST, Utterances


def test_words_that_are_there_when_they_are_asked_for():
    utterances = Utterances()
    utterances.found("a")
    utterances.end("a")
    assert utterances.finish("a", "Hello.") is None
    assert utterances.settle(1) == "Hello."
    assert not utterances.give_up(1)


def test_words_that_come_afterwards_and_in_another_order():
    utterances = Utterances()
    for item in "ab":
        utterances.found(item)
        utterances.end(item)
    assert utterances.settle(1) is None
    assert utterances.settle(2) is None
    assert utterances.finish("b", "Second.") == 2
    assert utterances.finish("a", "First.") == 1


def test_one_whose_end_was_told_is_the_item_that_nobody_knows():
    utterances = Utterances()
    utterances.found("a")
    utterances.end("a")
    utterances.end(None)
    assert utterances.settle(1) is None
    assert utterances.settle(2) is None
    assert utterances.finish("new", "By the button.") == 2
    assert utterances.finish("a", "By itself.") == 1


def test_words_that_are_too_late_are_nobody_elses():
    utterances = Utterances()
    for number, item in enumerate("ab"):
        utterances.found(item)
        utterances.end(item)
        assert utterances.settle(number) is None
    assert utterances.give_up(0)
    assert utterances.finish("a", "First.") is None
    assert utterances.finish("b", "Second.") == 1
    assert not utterances.give_up(1)


def test_nothing_was_said():
    utterances = Utterances()
    utterances.end(None, "")
    assert utterances.settle(1) == ""
    assert utterances.settle(2) == "", "of one that nobody has heard of"


def test_words_as_they_come():
    utterances = Utterances()
    assert utterances.hear("a", "Tell ") == "Tell "
    assert utterances.hear("b", "No") == "No"
    assert utterances.hear("a", "me.") == "Tell me."


def test_memory_is_bounded():
    utterances = Utterances()
    for number in range(3 * LATEST):
        utterances.hear(str(number), "word")
        utterances.end(str(number))
        utterances.found(str(number))
    assert len(utterances._open) == len(utterances._found) == len(utterances._partly) == LATEST
    assert utterances.hear("0", "word") == "word", "it was forgotten"
