"""What was generated, sent and heard of an answer. At 1 kHz a sample is a millisecond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.playout import Caption, Playout

RATE = 1000
ANSWER = "Hello there. Here is a long story."
MARKS = [(0, 0), (300, 6), (700, 13), (900, 18), (1000, 21), (1100, 23), (1500, 28)]
"""The words of it: at which sample and which character they begin. All is over at 2100."""


def audio(start: int, end: int) -> bytes:
    """Samples that tell where in the answer they are."""
    return b"".join((sample % 60_000).to_bytes(2, "little") for sample in range(start, end))


def spoken(*, marks: bool = True, finished: bool = True, whole: bool = True) -> Playout:
    """The answer, generated in full."""
    playout = Playout(RATE)
    playout.begin(1)
    playout.sentence(ANSWER[:12], 0)
    playout.add(audio(0, 700), MARKS[:2] if marks else ())
    playout.sentence(ANSWER[12:], 12)
    playout.add(audio(700, 2100), MARKS[2:] if marks else ())
    if whole:
        playout.pause()
    if finished:
        playout.finish()
    return playout


def send(playout):
    """All that may be sent now."""
    return list(iter(playout.due, None))


def listen(playout, samples, *, generation=1, offset=0):
    """Have the client play up to a sample of the answer."""
    sent = send(playout)
    for reported in range(offset, samples + 1, 100):
        playout.played(generation, reported - offset)
        sent += send(playout)
    playout.played(generation, samples - offset)
    return sent + send(playout)


class TestSending:
    def test_400_ms_go_ahead_in_packets_of_40(self):
        playout = spoken()
        packets = send(playout)
        assert [packet.offset for packet in packets] == list(range(0, 400, 40))
        assert [packet.sequence for packet in packets] == list(range(10))
        assert b"".join(packet.payload for packet in packets) == audio(0, 400)
        assert (playout.in_flight, playout.backlog, playout.done) == (400, 1700, False)

    def test_what_is_played_makes_room(self):
        playout = spoken()
        send(playout)
        playout.played(1, 39)
        assert not send(playout)
        playout.played(1, 85)
        assert [packet.offset for packet in send(playout)] == [400, 440]
        assert playout.in_flight == 395

    def test_the_last_packet_says_so_and_is_as_short_as_it_must_be(self):
        playout = spoken()
        packets = listen(playout, 2100)
        assert b"".join(packet.payload for packet in packets) == audio(0, 2100)
        assert [packet.last for packet in packets] == [False] * 52 + [True]
        assert len(packets[-1].payload) == 2 * 20
        assert playout.done and playout.due() is None

    def test_an_end_that_was_not_known_before_is_an_empty_packet(self):
        playout = spoken(finished=False)
        assert not any(packet.last for packet in listen(playout, 2100))
        assert not playout.done
        playout.finish()
        (last,) = send(playout)
        assert (last.last, last.payload, last.offset) == (True, b"", 2100)
        assert playout.done

    def test_an_answer_without_sound_has_an_end(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.sentence("```", 0)
        assert playout.due() is None and playout.heard() == 0
        playout.finish()
        assert [(packet.last, packet.payload) for packet in send(playout)] == [(True, b"")]
        assert playout.done and playout.heard() == 3

    def test_part_of_a_packet_waits_for_more_while_the_client_has_enough(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.add(audio(0, 290))
        assert len(send(playout)) == 7 and playout.backlog == 10
        playout.played(1, 80)
        assert [len(packet.payload) for packet in send(playout)] == [2 * 10], "it has less than half"

    def test_nor_does_the_end_of_a_sentence_wait(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.add(audio(0, 290))
        send(playout)
        playout.pause()
        assert [len(packet.payload) for packet in send(playout)] == [2 * 10]
        playout.add(audio(290, 300))
        assert not send(playout)
        playout.sentence("\n```", 20)  # another has begun, if only one that makes no sound
        assert [len(packet.payload) for packet in send(playout)] == [2 * 10]

    def test_a_slow_client_leaves_no_room(self):
        playout = Playout(RATE, backlog_ms=1000)
        playout.begin(1)
        assert playout.room == 1000
        playout.add(audio(0, 1400))
        assert playout.room == -400
        send(playout)
        assert playout.room == 0
        playout.played(1, 400)
        send(playout)
        assert playout.room == 400

    def test_nothing_is_due_before_an_answer_begins(self):
        playout = Playout(RATE)
        assert (playout.due(), playout.heard(), playout.done, playout.in_flight) == (None, 0, False, 0)
        assert playout.captions() == []

    def test_the_next_answer_has_a_page_of_its_own(self):
        playout = spoken()
        packets = listen(playout, 1000)
        playout.begin(2)
        playout.played(1, 1200)
        assert (playout.heard(), playout.generated, playout.done) == (0, 0, False)
        playout.add(audio(0, 40))
        assert next(iter(send(playout))).sequence == len(packets), "the frames of a call are counted on"

    def test_a_sentence_may_begin_where_audio_is_already(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.add(audio(0, 1000))
        assert playout.sentence(ANSWER[:12], 0, at=0) == 0
        assert playout.sentence(ANSWER[12:], 12, at=700) == 700
        listen(playout, 350)
        assert ANSWER[: playout.heard()] == "Hello"
        assert playout.captions() == [Caption(0, ANSWER[:12]), Caption(700, ANSWER[12:])]

    @pytest.mark.parametrize(("at", "is_at"), [(-5, 0), (600, 700), (700, 700), (5000, 1000)])
    def test_it_begins_within_the_audio_and_not_before_another(self, at, is_at):
        playout = Playout(RATE)
        playout.begin(1)
        playout.add(audio(0, 1000))
        if at > 0:
            playout.sentence(ANSWER[:12], 0, at=700)
        assert playout.sentence(ANSWER[12:], 12, at=at) == is_at

    def test_sentences_that_turn_out_to_begin_elsewhere(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.add(audio(0, 2100))
        for text, start, at in (("One two. ", 0, 0), ("Six ten. ", 9, 300), ("And so on.", 18, 1500)):
            playout.sentence(text, start, at=at)
        listen(playout, 120)  # and 400 more are sent: the second one is shown already
        assert [caption.offset for caption in playout.captions()] == [0, 300]
        playout.relocate({0: 0, 9: 700, 18: 1400})
        listen(playout, 2100)
        assert [caption.offset for caption in playout.captions()] == [1400]
        playout.relocate({18: 100})
        assert playout.heard() == 28

    def test_half_a_sample_is_refused(self):
        with pytest.raises(ValueError, match="whole samples"):
            Playout(RATE).add(b"abc")

    def test_a_packet_must_fit(self):
        with pytest.raises(ValueError, match="must fit"):
            Playout(RATE, ahead_ms=20)


class TestHeard:
    @pytest.mark.parametrize(
        ("samples", "heard"),
        [
            (0, ""),
            (1, ""),
            (149, ""),
            (150, "Hello"),
            (300, "Hello"),
            (499, "Hello"),
            (500, "Hello there."),
            (700, "Hello there."),
            (799, "Hello there."),
            (800, "Hello there. Here"),
            (1049, "Hello there. Here is"),
            (1050, "Hello there. Here is a"),
            (1300, "Hello there. Here is a long"),
            (1799, "Hello there. Here is a long"),
            (1800, ANSWER),
            (2100, ANSWER),
        ],
    )
    def test_words_count_once_half_of_them_was_played(self, samples, heard):
        playout = spoken()
        listen(playout, samples)
        assert ANSWER[: playout.heard()] == heard
        assert playout.samples_heard == samples

    @pytest.mark.parametrize(
        ("samples", "heard"),
        [
            (0, ""),
            (1, ""),
            (350, "Hello"),
            (700, "Hello there."),
            (750, "Hello there."),
            (1400, "Hello there. Here is a"),
            (1530, "Hello there. Here is a long"),
            (1950, ANSWER),
            (2100, ANSWER),
        ],
    )
    def test_without_marks_it_is_by_proportion_within_a_sentence_and_still_in_words(self, samples, heard):
        playout = spoken(marks=False)
        listen(playout, samples)
        assert ANSWER[: playout.heard()] == heard

    def test_ideographs_are_words(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.sentence("今天天气很好。", 0)
        playout.add(audio(0, 700))
        playout.finish()
        listen(playout, 300)
        assert playout.heard() == 3

    def test_a_report_of_more_than_was_sent_counts_for_what_was_sent(self):
        playout = spoken()
        send(playout)
        playout.played(1, 10_000)
        assert playout.samples_heard == 400

    def test_a_report_of_less_takes_nothing_back(self):
        playout = spoken()
        listen(playout, 800)
        playout.played(1, 100)
        playout.played(7, 2000)  # no generation of this answer
        assert ANSWER[: playout.heard()] == "Hello there. Here"

    def test_a_sentence_of_which_more_may_come_is_not_taken_for_whole(self):
        playout = spoken(marks=False, finished=False, whole=False)
        playout.sentence(" It goes on, and on, and on, for a long time.", len(ANSWER))
        playout.add(audio(2100, 2200))
        listen(playout, 2200)
        assert playout.heard() < len(ANSWER) + 12

    def test_the_end_of_a_sentence_is_heard_though_nothing_follows_yet(self):
        playout = spoken(finished=False)
        listen(playout, 2100)
        assert playout.heard() == len(ANSWER) and not playout.done

    def test_the_latest_word_of_an_unfinished_sentence_is_no_more_than_a_word(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.sentence(ANSWER, 0)
        playout.add(audio(0, 700), MARKS[:2])
        listen(playout, 700)
        assert ANSWER[: playout.heard()] == "Hello there."

    def test_captions_that_begin_together_are_one(self):
        playout = Playout(RATE)
        playout.begin(1)
        for text, start in (("Code:", 0), ("\n```", 5), ("\nx = 1", 9), ("\nDone.", 15)):
            playout.sentence(text, start)
            if text[-1] in ":.":
                playout.add(audio(0, 200))
        playout.finish()
        send(playout)
        assert playout.captions() == [Caption(0, "Code:"), Caption(200, "\n```\nx = 1\nDone.")]

    def test_what_makes_no_sound_counts_with_the_speech_before_it(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.sentence("\n```", 0)
        playout.sentence("Code:", 4)
        playout.add(audio(0, 200))
        playout.sentence("\n```", 9)
        playout.sentence("\nx = 1", 13)
        playout.sentence("\nDone.", 19)
        playout.add(audio(200, 400))
        playout.finish()
        listen(playout, 0)
        assert playout.heard() == 0
        playout.played(1, 199)
        assert playout.heard() == 9
        playout.played(1, 200)
        assert playout.heard() == 19
        playout.played(1, 400)
        assert playout.heard() == 25

    def test_marks_out_of_order_do_no_harm(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.sentence("one two three", 0)
        playout.add(audio(0, 300), [(100, 4), (50, 0), (5000, 99)])
        playout.finish()
        listen(playout, 300)
        assert playout.heard() == 13


class TestInterruptions:
    def test_after_a_cut_nothing_is_sent(self):
        playout = spoken()
        listen(playout, 120)
        assert playout.cut() == 120
        assert playout.due() is None
        playout.played(1, 180)  # what the client says when it has flushed
        assert ANSWER[: playout.heard()] == "Hello"
        assert playout.due() is None

    def test_a_false_alarm_goes_on_at_the_beginning_of_a_word(self):
        playout = spoken()
        listen(playout, 950)
        playout.cut()
        assert playout.resume(2) == playout.offset == 900
        first, *_ = packets = send(playout)
        assert (first.generation, first.offset, first.payload) == (2, 0, audio(900, 940))
        assert len(packets) == 10
        rest = listen(playout, 2100, generation=2, offset=900)
        assert b"".join(packet.payload for packet in packets + rest) == audio(900, 2100)
        assert playout.done and playout.heard() == len(ANSWER)

    def test_without_marks_it_goes_on_exactly_there(self):
        playout = spoken(marks=False)
        listen(playout, 950)
        assert playout.resume(2) == 950

    def test_nor_does_it_go_back_far(self):
        playout = Playout(RATE)
        playout.begin(1)
        playout.add(audio(0, 3000), [(0, 0)])
        listen(playout, 1800)
        assert playout.resume(2) == 1800

    def test_a_late_report_of_an_earlier_generation_counts(self):
        playout = spoken()
        listen(playout, 900)
        playout.resume(2)
        send(playout)
        playout.played(1, 1250)  # which it had been sent, and had played before it heard of the new one
        assert playout.samples_heard == 1250
        assert playout.in_flight == 400, "it is to play them again"
        packets = listen(playout, 2100, generation=2, offset=900)
        assert b"".join(packet.payload for packet in packets) == audio(1300, 2100)
        assert playout.done

    def test_an_answer_that_was_sent_in_full_has_its_last_packet_again(self):
        playout = spoken()
        listen(playout, 1900)
        playout.cut()
        playout.resume(2)
        assert [packet.last for packet in listen(playout, 2100, generation=2, offset=1500)][-1]
        assert playout.done

    def test_text_may_be_generated_while_it_is_cut(self):
        playout = spoken(finished=False)
        listen(playout, 900)
        playout.cut()
        playout.add(audio(2100, 2200))
        playout.resume(2)
        packets = listen(playout, 2200, generation=2, offset=900)
        assert b"".join(packet.payload for packet in packets) == audio(900, 2200)


class TestCaptions:
    def test_a_caption_goes_with_the_sound_it_belongs_to(self):
        playout = spoken()
        assert playout.captions() == []
        send(playout)
        assert playout.captions() == [Caption(0, "Hello there.")]
        assert playout.captions() == []
        listen(playout, 700)
        assert playout.captions() == [Caption(700, " Here is a long story.")]

    def test_after_a_resume_what_is_left_is_told_again(self):
        playout = spoken()
        listen(playout, 400)
        assert len(playout.captions()) == 2
        playout.cut()
        playout.resume(2)
        send(playout)
        assert playout.captions() == [Caption(0, "there.")]
        listen(playout, 700, generation=2, offset=300)
        assert playout.captions() == [Caption(400, " Here is a long story.")]

    def test_without_marks_too(self):
        playout = spoken(marks=False)
        listen(playout, 1750)
        playout.resume(2)
        send(playout)
        assert playout.captions() == [Caption(0, " story.")]

    def test_what_makes_no_sound_is_told_at_the_end(self):
        playout = spoken(finished=False)
        playout.sentence("\ncode", len(ANSWER))
        playout.finish()
        listen(playout, 2100)
        assert playout.captions()[-1] == Caption(2100, "\ncode")


def test_memory_is_bounded():
    playout = Playout(RATE)
    playout.begin(1)
    character = 0
    for number in range(300):
        while playout.room < 500:
            send(playout)
            playout.played(1, playout.samples_heard + 90)
        playout.sentence("word word ", character)
        at = playout.generated
        playout.add(audio(at, at + 500), [(at, character), (at + 250, character + 5)])
        character += 10
        assert len(playout._audio) <= 2 * (5000 + 400 + 1000)
        assert len(playout._sentences) < 20 and len(playout._marks) < 40, number
    for generation in range(2, 100):
        playout.resume(generation)
    assert len(playout._generations) == 8


moves = st.lists(
    st.one_of(
        st.tuples(st.just("generate"), st.integers(1, 400)),
        st.tuples(st.just("play"), st.integers(0, 300)),
        st.tuples(st.just("report late"), st.integers(0, 600)),
        st.tuples(st.just("cut"), st.just(0)),
        st.tuples(st.just("resume"), st.just(0)),
        st.tuples(st.just("sentence"), st.integers(0, 5)),
        st.tuples(st.just("sentence at"), st.integers(0, 2000)),
        st.tuples(st.just("relocate"), st.integers(0, 2000)),
        st.tuples(st.just("pause"), st.just(0)),
        st.tuples(st.just("finish"), st.just(0)),
    ),
    max_size=60,
)


@given(moves, st.booleans())
def test_whatever_happens_the_ledger_is_right(moves, marked):
    playout = Playout(RATE)
    generation, base, sent, reported = 1, 0, 0, 0
    generated = characters = heard = 0
    finished = ended = cut = False
    playout.begin(1)
    for move, size in [*moves, ("resume", 0), ("finish", 0), *[("play", 300)] * 80]:
        if move == "generate" and not finished:
            marks = [(generated, max(0, characters - 3))] if marked and characters else []
            playout.add(audio(generated, generated + size), marks)
            generated += size
        elif move == "sentence" and not finished:
            text = " word" * size
            assert playout.sentence(text, characters) == generated
            characters += len(text)
        elif move == "sentence at" and not finished:
            assert min(size, generated) <= playout.sentence(" some words", characters, at=size) <= generated
            characters += len(" some words")
        elif move == "relocate":
            playout.relocate({start: size + start for start in range(characters)})
        elif move == "pause":
            playout.pause()
        elif move == "finish":
            playout.finish()
            finished = True
        elif move == "cut":
            assert playout.cut() == playout.samples_heard
            cut = True
        elif move == "resume":
            before = playout.samples_heard
            generation, base, sent, reported = generation + 1, playout.resume(generation + 1), 0, 0
            assert before - RATE <= base <= before
            ended = cut = False
        elif move == "play":
            reported = min(sent, reported + size)
            playout.played(generation, reported)
        elif move == "report late":
            playout.played(generation - 1, size)
        for packet in send(playout):
            assert not cut and not ended
            assert (packet.generation, packet.offset) == (generation, sent)
            assert packet.payload == audio(base + sent, base + sent + len(packet.payload) // 2)
            sent += len(packet.payload) // 2
            ended = packet.last
            assert sent - reported <= 400
        assert playout.in_flight == sent - reported
        assert playout.backlog == generated - base - sent
        assert heard <= playout.heard() <= characters
        heard = playout.heard()
        assert heard == 0 or playout.samples_heard > 0 or playout.done
        assert all(0 <= caption.offset <= sent for caption in playout.captions())
        assert ended or not playout.done
    assert playout.done and base + sent == generated
    assert playout.heard() == characters


@given(st.lists(st.integers(0, 2200), max_size=30), st.booleans())
def test_the_more_is_played_the_more_is_heard(reports, marks):
    playout, before = spoken(marks=marks), 0
    for report in sorted(reports):
        listen(playout, min(report, 2100))
        assert before <= playout.heard() <= len(ANSWER)
        before = playout.heard()
