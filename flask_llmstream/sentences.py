"""A streamed answer, cut into pieces that can be spoken, and its Markdown made speakable, without I/O.

No library is used: pysbd has not been kept and wants whole texts, stream2sentence brings nltk or stanza with their
models, blingfire binary code; and here a boundary that is missed costs little, one that is invented is an audible stop.

A piece ends with a sentence (``. ! ? …`` and their ideographic forms, with the quotes and brackets that close there),
with a line, and at a colon or semicolon once it is long enough. A full stop ends none after an abbreviation, an initial
or a number of one or two digits (lists, dates in some languages), and none of these does where a small letter or no
space follows: so decimals, versions, file names and addresses stay whole. The first piece of an answer ends at its
first clause, so that speech begins early. Where a piece ends depends on the text alone and not on how it was cut into
tokens; it is known with the first character of what follows, or when :meth:`Sentences.end` says that nothing does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from typing import NamedTuple

LOOK = 32
"""Characters after a mark that are awaited, at most, to see what follows it."""

WIDE = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Letters that are worth two: Chinese, Japanese, Korean."""
WIDE_STOPS = "\u3002\uff01\uff1f"
WIDE_COLONS = "\uff1b\uff1a"
WIDE_COMMAS = "\uff0c\u3001"
FULL_WIDTH = WIDE_STOPS + WIDE_COLONS + WIDE_COMMAS
"""Signs that no space follows."""
STOPS = ".!?…" + WIDE_STOPS
COLONS = ":;" + WIDE_COLONS
COMMAS = ",\u2013\u2014" + WIDE_COMMAS
QUOTES = "\"'\u2018\u2019\u201a\u201b\u201c\u201d\u201e«»\u2039\u203a"
OPENERS = QUOTES + "([{<*_`"
CLOSERS = rf"[{QUOTES})\]}}*_`\u300d\u300f\uff09\u3011\u300b\u3009\uff3d]*"

FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^\n]*)")
MARK = re.compile(rf"[\n{STOPS}{COLONS}{COMMAS}]")
AFTER = re.compile(rf"[{STOPS}]*(?P<closed>{CLOSERS})(?P<space>\s*)")
AFTER_WIDE = re.compile(AFTER.pattern.replace("\u2018", "").replace("\u201c", ""))
"""These two quotes open there; in German, they close."""
CUT = re.compile(rf"[,;:\u2013\u2014]{CLOSERS}(?=\s)|[{FULL_WIDTH}]{CLOSERS}")
LETTERS = re.compile(r"[^\W\d_]+")
DOTTED = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}")
NUMBER = re.compile(r"\d{1,2}")
MODIFIER = re.compile(r"[\u0300-\u036f\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")
"""What belongs to the character before it."""

_ABBREVIATIONS = """
    mr mrs ms mx dr prof st sr jr rev hon gen col capt lt sgt gov sen rep pres messrs mme mlle sra dott sig
    vs cf ca approx est etc al ed eds resp incl excl min max dept inc ltd co corp bros
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri
    bzw usw evtl ggf inkl exkl bspw sog vgl zzgl abzgl geb gest hr fr tel str nr mio mrd
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_BEFORE_NUMBERS = "no nos fig figs vol p pp art abb bd sec ch ver v eq par ex"
BEFORE_NUMBERS = frozenset(_BEFORE_NUMBERS.split())
"""Abbreviations only where a number follows: else it is a word, as in “No.”"""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of an answer.

    :param text: the answer's own characters; together, the pieces are the whole answer.
    :param start: characters of the answer before it.
    :param silent: whether it belongs to a block of code, of which nothing is said.
    """

    text: str
    start: int
    silent: bool = False

    @property
    def end(self) -> int:
        """Characters of the answer up to its end."""
        return self.start + len(self.text)

    def spoken(self) -> Spoken:
        """What is said of it; may be nothing."""
        return Spoken("", (len(self.text),)) if self.silent else speakable(self.text)


class Sentences:
    """Cuts one answer.

    :param first_at: characters after which the first piece ends at a clause; ideographs count twice.
    :param most: characters that a piece may have; a longer one is cut at a clause, or between words.
    """

    def __init__(self, *, first_at: int = 25, most: int = 240) -> None:
        self._first_at = first_at
        self._most = most
        self._text = ""
        self._start = 0
        self._spoke = False
        self._at_line = True
        self._fence = ""

    def feed(self, text: str) -> list[Sentence]:
        """The pieces that are complete now."""
        self._text += text
        return self._pieces(ended=False)

    def end(self) -> list[Sentence]:
        """What is left: nothing follows, or not for a while, as where a tool is called. More may be fed then."""
        return self._pieces(ended=True)

    def _pieces(self, *, ended: bool) -> list[Sentence]:
        pieces = []
        while self._text:
            piece = self._next(self._text, ended)
            if piece is None:
                break
            pieces.append(piece)
            self._start = piece.end
            self._text = self._text[len(piece.text) :]
        return pieces

    def _next(self, text: str, ended: bool) -> Sentence | None:
        lead = len(text) - len(text.lstrip())
        if lead == len(text) or lead >= self._most:  # only space, so far
            self._at_line |= "\n" in text[: self._most]
            return self._cut(min(lead, self._most)) if ended or lead >= self._most else None
        at_line = self._at_line or "\n" in text[:lead]
        if at_line and not ended and text[lead] in "`~" and "\n" not in text[lead : self._most]:
            length = None if len(text) <= self._most else self._end_of(text, lead, ended)
            return self._cut(length)  # whether a block of code begins or ends is known with the whole line
        fence = FENCE.match(text, lead, self._most) if at_line else None
        if self._fence:
            return self._code(text, lead, fence, ended)
        if fence and "`" not in fence[2]:
            self._fence = fence[1]
            return self._cut(fence.end(), silent=True)
        if at_line and text[lead] == "|":
            return self._cut(self._end_of_line(text, lead, ended))
        return self._cut(self._end_of(text, lead, ended))

    def _code(self, text: str, lead: int, fence: re.Match[str] | None, ended: bool) -> Sentence | None:
        length = self._end_of_line(text, lead, ended)
        if length is not None and fence and fence[1].startswith(self._fence) and not fence[2].strip():
            self._fence = ""
        return self._cut(length, silent=True)

    def _cut(self, length: int | None, *, silent: bool = False) -> Sentence | None:
        if length is None:
            return None
        piece = Sentence(self._text[:length], self._start, silent)
        if piece.text.strip():
            self._at_line = False
            self._spoke |= not silent
        return piece

    def _end_of_line(self, text: str, lead: int, ended: bool) -> int | None:
        found = text.find("\n", lead, self._most)
        if found >= 0:
            return found
        return self._most if len(text) > self._most else len(text) if ended else None

    def _end_of(self, text: str, lead: int, ended: bool) -> int | None:
        """Where the piece that begins with `text` ends; None where that is not known yet."""
        at = lead
        while (mark := MARK.search(text, at, self._most)) is not None:
            if mark[0] == "\n":
                return mark.start()
            view = text[: mark.end() + LOOK]
            after = (AFTER_WIDE if mark[0] in FULL_WIDTH else AFTER).match(view, mark.end())
            assert after is not None
            end, line_ends = after.end("closed"), "\n" in after["space"]
            if after.end() == len(view) < mark.end() + LOOK and not (ended or line_ends):
                return None
            if end <= self._most and (line_ends or self._ends(text, lead, mark, after)):
                return end
            at = after.start("closed")
        if len(text) > self._most:
            return self._forced(text[: self._most + 1], lead)
        return len(text) if ended else None

    def _ends(self, text: str, lead: int, mark: re.Match[str], after: re.Match[str]) -> bool:
        """Whether the piece ends at this mark."""
        sign = mark[0]
        following = text[after.end() : after.end() + 1]
        spaced = bool(after["space"]) or not following
        if sign not in STOPS:
            enough = _length(text[lead : mark.start()]) >= self._first_at
            if sign in COLONS:
                return enough and (spaced or sign in FULL_WIDTH)
            return enough and not self._spoke and (spaced or sign in FULL_WIDTH)
        if sign in FULL_WIDTH:
            return True
        word = text[lead : mark.start()].rsplit(None, 1)[-1:]
        bare = word[0].lstrip(OPENERS) if word else ""
        if not spaced:  # two answers of a model that were put together: “your name?What else”
            return sign in "!?" and following.isupper() and LETTERS.fullmatch(bare) is not None
        if following.islower():
            return False
        return sign != "." or after.end("closed") != mark.end() or not _is_abbreviated(bare, following)

    def _forced(self, text: str, lead: int) -> int:
        """Where to cut what is too long: after a clause in its second half, else between words, else anywhere."""
        ends = [mark.end() for mark in CUT.finditer(text, lead, self._most) if mark.end() > self._most // 2]
        if ends:
            return ends[-1]
        space = max(text.rfind(" ", lead + 1), text.rfind("\t", lead + 1))
        if space > lead:
            return len(text[:space].rstrip())
        end = self._most
        while end > lead + 1 and MODIFIER.match(text, end):
            end -= 1
        return end


def _length(text: str) -> int:
    return len(text) + len(re.findall(f"[{WIDE}]", text))


def _is_abbreviated(word: str, following: str) -> bool:
    """Whether a full stop after this word belongs to it."""
    small = word.lower()
    if small in BEFORE_NUMBERS:
        return following.isdigit()
    if len(word) == 1 and word.isalpha():
        return word != "I"
    return small in ABBREVIATIONS or DOTTED.fullmatch(word) is not None or NUMBER.fullmatch(word) is not None


class Spoken(NamedTuple):
    """What is said of a text.

    :param text: for the synthesizer; empty where there is nothing to say.
    :param places: for each of its characters, and for its end, the characters of the source before it.
    """

    text: str
    places: tuple[int, ...]


MARKDOWN = re.compile(
    r"""
      (?P<fence> ^[ \t]*(?P<ticks>`{3,}|~{3,})[^`\n]*(?:\n(?:.*\n)*?[ \t]*(?P=ticks)[`~]*[ \t]*$|\n(?s:.*)|\Z) )
    | (?P<rule> ^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|={3,}[ \t]*)$ )
    | (?P<row> ^[ \t]*\|?[ \t]*:?-{2,}:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$
             | ^[ \t]*\|[ \t]*:?-+:?[ \t]*\|[ \t]*$ )
    | (?P<edge> ^[ \t]*\|[ \t]* | [ \t]*\|[ \t]*$ )
    | (?P<cell> [ \t]\|[ \t] )
    | (?P<head> ^[ \t]*(?:>[ \t]?)+ | ^[ \t]*\#{1,6}(?=[ \t]) | ^[ \t]*[-*+•][ \t]+(?:\[[ xX]\][ \t]+)? )
    | (?P<escape> \\(?P<escaped>[!-/:-@\[-`{-~]) )
    | (?P<url> <?\b(?:https?|ftp)://(?:www\.)?(?P<host>[^\s/?\#<>()\[\]"'`|*]+?(?=[.,;:!?]*(?:[\s/?\#<>()\[\]"'`|*]|\Z)))
          (?:[/?\#](?:[^\s<>()\[\]"'`|*]|\([^\s()]*\))*(?<![.,;:!?]))?>? )
    | (?P<tag> <!--(?s:.*?)--> | </?[a-zA-Z][^<>\n]*> )
    | (?P<note> \[\^[^\]\n]*\]:? )
    | (?P<link> !?\[(?=[^\[\]\n]*\](?:\(|\[)) )
    | (?P<target> \](?:\((?:[^\s()]|\([^\s()]*\))*(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\)|\[[^\[\]\n]*\]) )
    | (?P<ticks_> `+ | ~~+ )
    | (?P<strong> (?<!\s)\*+ | \*+(?=\S) )
    | (?P<under> (?<![^\W_])_+(?=\S) | (?<=\S)_+(?![^\W_]) )
    | (?P<inner> _+ )
    | (?P<entity> &(?:\#\d{1,7}|\#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31}); )
    | (?P<emoji> (?: [\U0001f000-\U0001fbff\U000e0020-\U000e007f\u2600-\u27bf\u2b00-\u2bff]
                   | [\u231a-\u23ff\u20e3\u200d\ufe0e\ufe0f] )+ )
    | (?P<space> \s+ )
    """,
    re.VERBOSE | re.MULTILINE,
)


def speakable(text: str) -> Spoken:
    """Make Markdown speakable: of blocks of code, rules, emojis and where links lead to nothing is said, of an address
    only its host, and the cells of a table are said one after the other.

    :param text: an answer, or a piece of one.
    """
    said: list[str] = []
    places: list[int] = []

    def say(characters: str, at: int, *, step: int = 1) -> None:
        said.extend(characters)
        places.extend(range(at, at + len(characters)) if step else [at] * len(characters))

    done = 0
    for match in MARKDOWN.finditer(text):
        say(text[done : match.start()], done)
        done = match.end()
        what = match.lastgroup
        if match["host"] is not None:
            say(match["host"], match.start("host"))
        elif match["escaped"] is not None:
            say(match["escaped"], match.start("escaped"))
        elif what == "cell":
            say(", ", match.start(), step=0)
        elif what == "entity":
            say(unescape(match[0]), match.start(), step=0)
        elif what == "inner" or (what == "tag" and match[0].lower().startswith("<br")):
            say(" ", match.start())
        elif what == "space":
            say("\n" if "\n" in match[0] else " ", match.start())
    say(text[done:], done)
    return _trimmed(said, places, len(text))


def _trimmed(said: list[str], places: list[int], length: int) -> Spoken:
    """Without space at the ends or after space, and without a text of which only signs are left."""
    if not any(map(str.isalnum, said)):
        return Spoken("", (length,))
    kept = [
        number
        for number, character in enumerate(said)
        if not character.isspace() or (number and not said[number - 1].isspace())
    ]
    while said[kept[0]].isspace():
        del kept[0]
    while said[kept[-1]].isspace():
        del kept[-1]
    return Spoken("".join(said[number] for number in kept), (*(places[number] for number in kept), length))
