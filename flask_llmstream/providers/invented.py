"""What the simulation answers where JSON is asked for: a document that fits the schema, read out of the question.

No intelligence, but rules that can be seen through. A choice is the one whose name or synonyms occur most; numbers,
dates, addresses are those that the text has; a string is what follows the property's name. Where the text has nothing
a property is null, or the plainest thing that fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from .texts import dates, normal, numbers, times, words

Node = Mapping[str, Any]
NOTHING: Final = object()

SYNONYMS = {
    "positive": "good great love loved like excellent happy thanks thank wonderful perfect fast helpful recommend best",
    "negative": "bad terrible hate hated awful poor slow broken angry disappointed worst unhappy refund useless never",
    "billing": "invoice charge charged refund payment paid price card bill",
    "technical": "error crash crashes crashed bug broken fails failed install login",
    "bug": "error crash crashes crashed broken fails failed wrong",
    "shipping": "delivery delivered package parcel arrived arrive tracking courier",
    "account": "login password email profile sign username",
    "urgent": "asap immediately now emergency urgently",
    "high": "urgent asap immediately critical important",
    "low": "whenever sometime minor eventually",
    "question": "how what why when where which who",
    "yes": "true correct agree",
    "no": "false wrong disagree",
    "eur": "€ euro euros",
    "usd": "$ dollar dollars",
    "gbp": "£ pound pounds",
}
UNDECIDED = {"neutral", "mixed", "other", "unknown", "none", "general", "unclear"}
"""What is chosen where nothing speaks for any choice; the first one where none of these is among them."""
OPPOSITES = {"positive": "negative", "negative": "positive", "yes": "no", "no": "yes"}
"""To deny the one is to speak of the other."""
NEGATIONS = {"not", "no", "never", "isn't", "wasn't", "don't", "didn't", "nicht"}
CURRENCIES = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY"}
CURRENCY = re.compile(r"\b(?:EUR|USD|GBP|CHF|JPY|SEK|NOK|DKK|PLN|CAD|AUD)\b|[€$£¥]")
FORMATS = {
    "email": re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"),
    "uuid": re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE),
    "ipv4": re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"),
    "ipv6": re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE),
    "hostname": re.compile(r"\b(?:[a-z0-9-]{1,63}\.)+[a-z]{2,63}\b", re.IGNORECASE),
}
PLAINEST = {
    "date": "1970-01-01",
    "date-time": "1970-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "nobody@example.com",
    "hostname": "localhost",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
PLAIN = ("0", "1970-01-01T00:00:00", "00:00", "https://example.com/", "none", "")
"""For strings that shall match a pattern."""
BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+(.+)$", re.MULTILINE)
NOT_AN_ITEM = re.compile(r"\s*(?:sub-?\s?total|total|tax|vat|sum|amount|balance|date|due|invoice)\b|.*:", re.IGNORECASE)
LABEL = re.compile(r"[^\W\d]\s*[:=](?!//)")
SNIPPET = 120
"""Characters."""
LONGEST = 20_000
"""Characters of a text that are read."""


def invent(schema: Node, text: str) -> Any:
    """A JSON value that fits the schema.

    :param text: what it is read out of.
    """
    return _Reader(schema, text[:LONGEST]).fill(schema, "", ())


def spoil(document: Any) -> Any:
    """The same document with a mistake in its first property: something that is of no type that this could have."""
    if not isinstance(document, Mapping) or not document:
        return []
    first = next(iter(document))
    return {**document, first: {} if isinstance(document[first], list) else []}


class _Reader:
    """Reads one text for the values of one schema.

    :param root: where references lead.
    :param line: the text is one item of a list: its numbers go to the properties in order, its words to the first.
    """

    def __init__(self, root: Node, text: str, *, line: bool = False) -> None:
        self._root = root
        self._text = text
        self._line = line
        self._numbers = list(numbers(text))
        self._told = False

    def fill(self, node: Node, name: str, above: Sequence[str]) -> Any:
        """What the text has for a property; failing that null or the plainest value."""
        found = self.find(node, name, above)
        if found is not NOTHING:
            return found
        return None if _nullable(node) else self._plainest(node, name, above)

    def find(self, node: Node, name: str, above: Sequence[str]) -> Any:
        node, above = self._resolved(node, above)
        if above.count(above[-1]) > 1 if above else False:
            return NOTHING  # a schema within itself: the same text would be read for ever
        if "enum" in node or "const" in node:
            return self._choice(_choices(node))
        kind = _kind(node)
        if kind == "object":
            found = {key: self.find(below, key, above) for key, below in node.get("properties", {}).items()}
            if all(value is NOTHING for value in found.values()):
                return NOTHING
            return {
                key: self.fill(node["properties"][key], key, above) if value is NOTHING else value
                for key, value in found.items()
            }
        if kind == "array":
            return self._items(node, name, above)
        if kind in ("number", "integer"):
            return self._number(node, name, whole=kind == "integer")
        if kind == "boolean":
            return self._truth(name)
        return self._string(node, name)

    def _resolved(self, node: Node, above: Sequence[str]) -> tuple[Node, Sequence[str]]:
        """The node without references and alternatives, of which the first that is not null is taken."""
        while True:
            if "$ref" in node:
                above = (*above, node["$ref"])
                target: Any = self._root
                for step in node["$ref"].lstrip("#/").split("/"):
                    target = target[step] if step else target
                node = target
            elif "anyOf" in node:
                node = next((choice for choice in node["anyOf"] if choice.get("type") != "null"), {})
            else:
                return node, above

    def _choice(self, choices: Sequence[Any]) -> Any:
        said = words(self._text)
        scores = {index: _mentions(said, str(choice)) for index, choice in enumerate(choices)}
        if any(score > 0 for score in scores.values()):
            best = max(scores, key=lambda index: scores[index])
            if list(scores.values()).count(scores[best]) == 1:
                return choices[best]
        undecided = [choice for choice in choices if str(choice).lower() in UNDECIDED]
        if undecided:
            return undecided[0]
        return choices[max(scores, key=lambda index: scores[index])] if any(scores.values()) else NOTHING

    def _number(self, node: Node, name: str, *, whole: bool) -> Any:
        def fits(number: float) -> bool:
            return _within(number, node) and (not whole or number == int(number))

        told = (number for near in _near(self._text, name) for number in numbers(near) if fits(number))
        found = next(told, None)
        if found is None and self._line:
            found = self._next_number(fits)
        if found is None:
            found = _one_of([] if self._line else list(filter(fits, numbers(_free(self._text, node)))), node)
        return int(found) if whole and found is not NOTHING else found

    def _next_number(self, fits: Callable[[float], bool]) -> float | None:
        """The first number of an item that fits, which no other property gets."""
        found = next(filter(fits, self._numbers), None)
        if found is not None:
            self._numbers.remove(found)
        return found

    def _truth(self, name: str) -> Any:
        score = _mentions(words(self._text), re.sub(r"^(?:is|has|was|are)_", "", name))
        return NOTHING if not score else score > 0

    def _string(self, node: Node, name: str) -> Any:
        form = node.get("format")
        if form in ("date", "date-time", "time"):
            return self._moment(node, name)
        if form in FORMATS:
            found = FORMATS[form].search(self._text)
            return found[0] if found else NOTHING
        if pattern := node.get("pattern"):
            return self._matching(re.compile(pattern), name)
        if "currency" in name.lower() and (found := CURRENCY.search(self._text)):
            return CURRENCIES.get(found[0], found[0])
        if near := next(_near(self._text, name), ""):
            return near[:SNIPPET]
        if self._line and not self._told:
            self._told = True
            return self._snippet()
        return NOTHING

    def _moment(self, node: Node, name: str) -> Any:
        told = (moment for near in _near(self._text, name) for moment in _moments(near, node["format"]))
        found = next(told, None)
        return found or _one_of(list(_moments(_free(self._text, node), node["format"])), node)

    def _matching(self, pattern: re.Pattern[str], name: str) -> Any:
        if self._line:
            number = self._next_number(lambda each: bool(pattern.search(f"{each:.10g}")))
            if number is not None:
                return f"{number:.10g}"
        candidates = (each for near in (*_near(self._text, name), self._text) for each in _candidates(near))
        return next(filter(pattern.search, candidates), NOTHING)

    def _items(self, node: Node, name: str, above: Sequence[str]) -> Any:
        below, _ = self._resolved(node.get("items", {}), above)
        most = node.get("maxItems", 50)
        lines = BULLET.findall(self._text)
        if not lines and _kind(below) == "object":
            lines = [line for line in self._text.splitlines() if _is_item(line)]
        elif not lines:
            lines = [part for near in _near(self._text, name) for part in re.split(r"\s*[,;]\s*", near) if part]
        found = [self._item(node["items"], line, above) for line in lines[:most]]
        return found if found and len(found) >= node.get("minItems", 0) else NOTHING

    def _item(self, node: Node, line: str, above: Sequence[str]) -> Any:
        return _Reader(self._root, line, line=True).fill(node, "", above)

    def _snippet(self) -> str:
        """The first line that says something; of an item of a list the words before its numbers."""
        line = next((line.strip() for line in self._text.splitlines() if line.strip()), "")
        if self._line and (letters := re.search(r"[^\W\d]{2}(?:.*?[^\W\d])?(?=\W*(?:\d|$))", line)):
            line = letters[0]
        return line[:SNIPPET]

    def _plainest(self, node: Node, name: str, above: Sequence[str]) -> Any:
        node, above = self._resolved(node, above)
        if "enum" in node or "const" in node:
            return _choices(node)[0]
        kind = _kind(node)
        if kind == "object":
            return {key: self.fill(below, key, above) for key, below in node.get("properties", {}).items()}
        if kind == "array":
            return [self._plainest(node["items"], name, above) for _ in range(node.get("minItems", 0))]
        if kind in ("number", "integer"):
            return _nearest_to_zero(node)
        if kind == "boolean":
            return False
        if node.get("format") in PLAINEST:
            return PLAINEST[node["format"]]
        if pattern := node.get("pattern"):
            return next((plain for plain in PLAIN if re.search(pattern, plain)), "")
        return self._snippet()


def _kind(node: Node) -> str:
    kinds = node.get("type", "string")
    if isinstance(kinds, str):
        return kinds
    return next((kind for kind in kinds if kind != "null"), "null")


def _nullable(node: Node) -> bool:
    return "null" in node.get("type", ()) or any(_nullable(choice) for choice in node.get("anyOf", ()))


def _choices(node: Node) -> list[Any]:
    choices = [choice for choice in node.get("enum", [node.get("const")]) if choice is not None]
    return choices or [None]


def _mentions(said: Sequence[str], name: str) -> int:
    """How often the words speak of it, less how often they deny it."""
    score = sum(_denials(said, name))
    opposite = OPPOSITES.get(name.lower(), "")
    return score + sum(denial < 0 for denial in _denials(said, opposite))


def _denials(said: Sequence[str], name: str) -> Iterator[int]:
    """1 for each mention of a name or of its synonyms, -1 for one that is denied."""
    own = words(normal(name))
    synonyms = set(SYNONYMS.get(name.lower(), "").split())
    for place, word in enumerate(said):
        if word in synonyms or (own and said[place : place + len(own)] == own):
            yield -1 if NEGATIONS & set(said[max(0, place - 2) : place]) else 1


def _near(text: str, name: str) -> Iterator[str]:
    """What stands behind the property's name on a line, or behind the last word of it."""
    own = words(normal(name))
    for label in [own, own[-1:]] if len(own) > 1 else [own] if own else []:
        told = (
            r"\b" + r"[\s_-]*".join(map(re.escape, label)) + r"\b\s*(?:number|no\.?)?\s*(?:[:#=]|\bis\b)+[ \t]*(.*\S)"
        )
        yield from re.findall(told, text, re.IGNORECASE)


def _is_item(line: str) -> bool:
    return bool(re.search(r"[^\W\d]", line)) and any(numbers(line)) and not NOT_AN_ITEM.match(line)


def _free(text: str, node: Node) -> str:
    """Where a value may be taken from that bears no name: if it may be null, not from behind the name of another."""
    if not _nullable(node):
        return text
    return "\n".join(line for line in text.splitlines() if not LABEL.search(line))


def _one_of(found: Sequence[Any], node: Node) -> Any:
    """The first; but where null may be said nothing is guessed, and one of several is none."""
    return found[0] if len(found) == 1 or (found and not _nullable(node)) else NOTHING


def _moments(text: str, form: str) -> Iterator[str]:
    if form == "time":
        yield from (f"{time}Z" for time in times(text))
    elif form == "date":
        yield from dates(text)
    else:
        time = next(times(text), "00:00:00")
        yield from (f"{date}T{time}Z" for date in dates(text))


def _candidates(text: str) -> Iterator[str]:
    """What a string of a certain pattern may be: a word as it is, or a number, date or time as JSON has them."""
    yield from (word.rstrip(".,;") for word in text.split())
    yield from (f"{number:.10g}" for number in numbers(text))
    yield from (f"{date}T{time}" for date in dates(text) for time in [*times(text), "00:00:00"])
    yield from dates(text)
    yield from times(text)


def _within(number: float, node: Node) -> bool:
    return (
        node.get("minimum", number) <= number <= node.get("maximum", number)
        and ("exclusiveMinimum" not in node or number > node["exclusiveMinimum"])
        and ("exclusiveMaximum" not in node or number < node["exclusiveMaximum"])
        and ("multipleOf" not in node or number % node["multipleOf"] == 0)
    )


def _nearest_to_zero(node: Node) -> float:
    step = node.get("multipleOf", 1)
    lowest, highest = (
        node.get("minimum", node.get("exclusiveMinimum", 0)),
        node.get("maximum", node.get("exclusiveMaximum", 0)),
    )
    near = [0, lowest, highest, lowest + step, highest - step, (lowest + highest) / 2]
    return next((number for number in near if _within(number, node)), 0)
