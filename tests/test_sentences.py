"""An answer in pieces that can be spoken, and what is said of it."""

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sentences import Sentence, Sentences, Spoken, speakable


def pieces(text: str, **options) -> list[Sentence]:
    sentences = Sentences(**options)
    return [*sentences.feed(text), *sentences.end()]


def cut(text: str, *, first_at: int = 1000, **options) -> list[str]:
    """The pieces without the space before them."""
    return [piece.text.strip() for piece in pieces(text, first_at=first_at, **options)]


@pytest.mark.parametrize(
    "text",
    [
        "Hello there.| How are you?| Fine!",
        "Well… Yes.",
        "Wait...| What?| No!!!| Really?!| Yes",
        'He said "Go."| Then he went.',
        "“Go.”| (He went.)| [So it is.]| „Ja.“| «Oui.»| Then",
        "**It matters.**| _It does._| `Done.`| Good",
        '"Really?" she asked.| "Yes!" he said.',
        "We use Yahoo! and others.| Good.",
        "One line\nanother line\n\n\na third",
        "What is your name?|What else is there?",
        "Stop!|No.",
    ],
)
def test_sentences_end(text):
    expected = [part.strip() for line in text.splitlines() for part in line.split("|") if part]
    if text.startswith("Well"):
        expected = ["Well…", "Yes."]
    assert cut(text.replace("|", "")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Smith met Dr. Jones and Mrs. Brown at St. Mary's.",
        "It is so, e.g. Here, i.e. There, z.B. Hier, d.h. Da.",
        "z. B. Äpfel, bzw. Birnen, vgl. Seite drei.",
        "J. R. R. Tolkien and George W. Bush.",
        "She lives in the U.S. Senate, with a Ph.D. Degree.",
        "At 5 a.m. Mr. Smith left.",
        "Pi is 3.14, version 1.2.3 costs $9.99 at 10:30.",
        "See https://example.com/a.b?q=A!b and example.com or file.txt.",
        "Call asyncio.Queue or Array.Type now.",
        "Am 3. Mai und am 24. Dezember.",
        "See fig. 3 and no. 5 and p. 7 of it.",
        "Smith et al. found it.",
        "Is it (as Dr. Who said) so?",
        "All this, and more... and more.",
        "Buy apples, pears etc. before noon.",
        "Nothing at all",
        "Hm: short.",
    ],
)
def test_what_does_not_end_a_sentence(text):
    assert cut(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It was in 1999. Then came more.", ["It was in 1999.", "Then came more."]),
        ("No. I do not.", ["No.", "I do not."]),
        ("So do I. Then we go.", ["So do I.", "Then we go."]),
        ("See https://example.com. Then go.", ["See https://example.com.", "Then go."]),
        ("It costs 3.14. Then go.", ["It costs 3.14.", "Then go."]),
        ("你好。今天天气很好！是吗？“对。”好", ["你好。", "今天天气很好！", "是吗？", "“对。”", "好"]),  # noqa: RUF001
        ("「そうです。」はい。", ["「そうです。」", "はい。"]),
        ("안녕하세요. 잘 지내요?", ["안녕하세요.", "잘 지내요?"]),
    ],
)
def test_where_sentences_end_that_look_like_something_else(text, expected):
    assert cut(text) == expected


def test_a_clause_ends_a_piece_once_it_is_long_enough():
    text = "Here is what I have found for you: it rains, it snows; and it is cold. Take a coat, please, and a hat."
    assert cut(text, first_at=25) == [
        "Here is what I have found for you:",
        "it rains, it snows; and it is cold.",
        "Take a coat, please, and a hat.",
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Of course, I can help you with that, and gladly so.", "Of course, I can help you with that,"),
        ("Yes. I can help you with that, and gladly so.", "Yes."),
        ("The sum is 1,000,000 dollars and 50 cents, I think.", "The sum is 1,000,000 dollars and 50 cents,"),
        ("It is a long way – but not for us, who fly.", "It is a long way – but not for us,"),  # noqa: RUF001
        ("It is a long and winding way – but not for us.", "It is a long and winding way –"),  # noqa: RUF001
        ("北京是中国的首都，也是全国的政治中心，人口众多。", "北京是中国的首都，也是全国的政治中心，"),  # noqa: RUF001
    ],
)
def test_the_first_piece_comes_early(text, first):
    assert cut(text, first_at=25)[0] == first


def test_only_the_first_does():
    text = "Yes. This is quite a long sentence, with a clause, and one more. " * 2
    assert all(piece.endswith(".") for piece in cut(text, first_at=25) if piece)


def test_a_piece_is_there_with_the_first_character_after_it():
    sentences = Sentences()
    assert sentences.feed("Hello") == []
    assert sentences.feed(" there.") == []
    assert sentences.feed(" ") == []
    assert sentences.feed("How") == [Sentence("Hello there.", 0)]
    assert sentences.feed(" are you?\n") == [Sentence(" How are you?", 12)]
    assert sentences.end() == [Sentence("\n", 25)]


def test_nothing_is_held_back_while_a_tool_is_called():
    sentences = Sentences()
    assert sentences.feed("I will look that up.") == []
    assert sentences.end() == [Sentence("I will look that up.", 0)]
    assert sentences.feed(" It is 5. ") == []
    assert sentences.end() == [Sentence(" It is 5. ", 20)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A title\nText. More.", ["# A title", "Text.", "More."]),
        ("- one\n- two. Three\n* four", ["- one", "- two.", "Three", "* four"]),
        ("1. First\n2. Second. Third", ["1. First", "2. Second.", "Third"]),
        ("| A. B | c |\n|---|---|\n| D. E | f |", ["| A. B | c |", "|---|---|", "| D. E | f |"]),
        ("Try this:\n\n> A quote. Another.", ["Try this:", "> A quote.", "Another."]),
    ],
)
def test_lines_are_pieces(text, expected):
    assert cut(text) == expected


def test_of_a_block_of_code_nothing_is_said():
    text = "Look:\n```python\nprint('Hi. There')\n~~~\n\n# no title\n```\nThat is it.\n~~~\nopen. Still"
    assert [(piece.text.strip(), piece.silent) for piece in pieces(text)] == [
        ("Look:", False),
        ("```python", True),
        ("print('Hi. There')", True),
        ("~~~", True),
        ("# no title", True),
        ("```", True),
        ("That is it.", False),
        ("~~~", True),
        ("open. Still", True),
    ]
    assert "".join(piece.spoken().text for piece in pieces(text)) == "Look:That is it."


def test_code_within_a_line_is_no_block():
    assert not any(piece.silent for piece in pieces("```x``` is it.\nSo it is."))


def test_what_is_too_long_is_cut_at_a_clause_or_between_words():
    clauses = "one two three four five six, seven eight nine ten eleven twelve thirteen"
    assert cut(clauses, most=40)[0] == "one two three four five six,"
    words = "one two three four five six seven eight nine ten"
    assert cut(words, most=21) == ["one two three four", "five six seven eight", "nine ten"]
    assert cut("x" * 50, most=20) == ["x" * 20, "x" * 20, "x" * 10]
    assert cut("e\u0301" * 15, most=15)[0] == "e\u0301" * 7, "an accent stays with its letter"


def test_a_long_answer_takes_no_long_time():
    def seconds(text: str) -> float:
        sentences, begun = Sentences(), perf_counter()
        for at in range(0, len(text), 4):
            sentences.feed(text[at : at + 4])
        sentences.end()
        return perf_counter() - begun

    for kind in ("word " * 4000, "." * 20_000, " " * 20_000, "```\n" + "x" * 20_000, "a.b" * 7000, "|" * 20_000):
        assert seconds(kind) < 5, kind[:5]


SIGNS = st.sampled_from([*" \n.,:;!?…", "\n\n", "...", *"\u3002\uff0c\u300c\u201c\u201d", '"', ")", "\u0301", "😀"])
WORDS = st.sampled_from(["Mr.", "e.g.", "3.14", "1.", "Word", "word", "I", "é", "天"])
MARKUP = st.sampled_from(["```", "~~~", "\n```\n", "```py\n", "`", "|", "\n|", "**", "- ", "_", "[a](b)"])
texts = st.lists(SIGNS | WORDS | MARKUP | st.text(max_size=6), max_size=60).map("".join)


@given(texts, st.integers(20, 60), st.integers(1, 30))
def test_the_pieces_are_the_answer(text, most, first_at):
    found = pieces(text, most=most, first_at=first_at)
    assert "".join(piece.text for piece in found) == text
    for piece in found:
        assert piece.text and len(piece.text) <= most
        assert text[piece.start : piece.end] == piece.text


@given(texts, st.data())
def test_however_it_is_cut_into_tokens_the_pieces_are_the_same(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    tokens = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    sentences = Sentences(most=40, first_at=10)
    found = [piece for token in tokens for piece in sentences.feed(token)] + sentences.end()
    assert found == pieces(text, most=40, first_at=10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Plain text, as it is.", "Plain text, as it is."),
        ("**Bold**, *so* and __strong__ _em_ ~~gone~~.", "Bold, so and strong em gone."),
        ("Use `pip install` or ``a`b``.", "Use pip install or ab."),
        ("A [link](https://a.b/c_(d)?e=f) and [two *words*](/x 'title').", "A link and two words."),
        ("A [reference][1], an ![image](a.png) and a note[^1].", "A reference, an image and a note."),
        ("A [b] stays.", "A [b] stays."),
        ("See https://www.example.com/a/b?c=d#e.", "See example.com."),
        ("See <https://example.com> (http://a.org/b).", "See example.com (a.org)."),
        ("# Title", "Title"),
        ("### Title ", "Title"),
        ("#1 is C# code", "#1 is C# code"),
        ("- item", "item"),
        ("* [ ] to do", "to do"),
        ("1. First", "1. First"),
        ("> quoted", "quoted"),
        ("3 * 4 and a*b*c", "3 * 4 and abc"),
        ("my_long_name", "my long name"),
        ("---", ""),
        ("* * *", ""),
        ("Great 👍🏽! 1️⃣ 👩‍👩‍👧 🇩🇪 ok", "Great ! 1 ok"),
        ("| a | b |", "a, b"),
        ("|:--|--:|", ""),
        ("a || b", "a || b"),
        ("x &amp; y &lt; z &nosuch;", "x & y < z &nosuch;"),
        (r"1\. It is \*so\*", "1. It is *so*"),
        ("a<br>b <b>c</b> <!-- d --> 1 < 2", "a b c 1 < 2"),
        ("Before\n```py\ncode()\n```\nafter", "Before\nafter"),
        ("Before\n```py\ncode()", "Before"),
        ("  \n ", ""),
        ("...", ""),
        ("", ""),
    ],
)
def test_what_is_said(text, said):
    assert speakable(text).text == said


def test_each_character_leads_back_to_the_answer():
    text = "**Bold** [link](u) &amp; `co`"
    said, places = speakable(text)
    assert said == "Bold link & co"
    assert [text[place] for place in places[:-1]] == list(said)
    assert places[-1] == len(text)
    assert places[said.index("link")] == text.index("link")
    assert speakable("**") == Spoken("", (2,))


@given(texts)
def test_places_grow_and_stay_within_the_text(text):
    said, places = speakable(text)
    assert len(places) == len(said) + 1
    assert list(places) == sorted(places) and places[-1] == len(text)
    assert said == said.strip()
    if "&" not in text:
        assert all(letter == text[place] for letter, place in zip(said, places, strict=False) if letter.isalnum())


@given(st.lists(st.sampled_from(["word", "Two", "é", "3.14", "it's", "7"]), min_size=1).map(" ".join))
def test_plain_text_is_said_as_it_is(text):
    assert speakable(text) == Spoken(text, tuple(range(len(text) + 1)))


UNENDING = [*"*_`[|<&#~\\", "](", "| ", "|-", "- ", "> ", "<a ", "```\n", "http://", "<!--"]


@pytest.mark.parametrize("sign", UNENDING)
def test_markup_without_end_takes_no_long_time(sign):
    begun = perf_counter()
    speakable(sign * (2000 // len(sign)))
    speakable("[a](" + sign * 500)
    assert perf_counter() - begun < 2
