"""A model that is none: prepared text at a real model's pace, for trying things out without a key.

It says so, in the first answer of each conversation and once in the log. What it answers follows from words in
the question; a question may open with commands, which make it behave as models do on their worse days. Where a JSON
schema is asked for, the answer is a document that fits it (`invented`), and says nothing else. Where a system message
says that the answer will be spoken, it repeats what was understood, and says a few words about the simulation.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from math import inf
from typing import Any

from ..errors import (
    ContentFiltered,
    LLMStreamError,
    RunCancelled,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from ..events import Event, Reasoning, Token, Tool, Usage
from . import CORRECTION, Call, Message, Reply
from .invented import invent, spoil

log = logging.getLogger(__name__)

COMMANDS = {
    "/echo": "answers with the text that follows, as it is",
    "/fail": (
        "fails before the first word (also `/fail limit`, `/fail filter`), or `/fail midway`; where JSON is asked for, "
        "`/fail schema` makes the first answer one that does not fit, `/fail schema always` each"
    ),
    "/long": "writes an answer of some 2,000 tokens",
    "/stall": "falls silent midway; `/stall first` before the first word, `/stall 5` for five seconds only",
    "/think": "shows reasoning first",
    "/tool": "asks for a tool to be called",
}
REFUSALS: dict[str, Callable[[], LLMStreamError]] = {
    "": UpstreamUnavailable,
    "limit": lambda: UpstreamRateLimited(retry_after=2.0),
    "filter": ContentFiltered,
}
MIDWAY = 24  # tokens, enough to be seen on a page before the answer breaks off
# Close to what tokenizers make of English: short words whole, with their blank; long ones in pieces.
PIECES = re.compile(r"\s?\w{1,8}|\s+|[^\w\s]")
COMMAND = re.compile(r"\s*(/\w+)(?:[ \t]+(\w+))?")
FAIL_SCHEMA = re.compile(r"\s*/fail[ \t]+schema\b(?:[ \t]+(always)\b)?\s*")
"""Anywhere in a question: where JSON is asked for, an application has mostly wrapped its visitor's text."""
ARGUMENTS = {"/fail": {"midway", "schema", *REFUSALS}, "/stall": {"first", *map(str, range(100))}}


class Simulated:
    """Prepared answers that arrive like those of a language model.

    :param first_token: seconds to the first token, on average; it varies by two fifths either way.
    :param rate: tokens per second, on average; ``math.inf`` for no waiting at all.
    :param seed: makes the choice of answers and the timing repeatable for each question.
    """

    name = "simulation"

    def __init__(self, *, first_token: float = 0.55, rate: float = 45.0, seed: int | None = None) -> None:
        self.first_token = first_token
        self.rate = rate
        self.seed = seed
        self._announce = threading.Lock()

    def stream(self, call: Call) -> Generator[Event]:
        """Yield the answer; commands at the start of the question (`COMMANDS`) change how."""
        self._say_what_this_is()
        pace = _Pace(call)
        call.abort = pace.interrupt
        try:
            yield from self._perform(call, pace)
        finally:
            call.abort = None

    def reply(self, call: Call) -> Reply:
        """The whole answer, after the time that a model would take to write it."""
        events = list(self.stream(call))
        text = "".join(event.token for event in events if isinstance(event, Token))
        return Reply(text=text, tool_calls=[event.tool for event in events if isinstance(event, Tool)])

    def warm(self) -> None:
        """Nothing to open; the log gets its notice at the start rather than at the first question."""
        self._say_what_this_is()

    def close(self) -> None:
        """Nothing to give back."""

    def _say_what_this_is(self) -> None:
        if self._announce.acquire(blocking=False):  # never released: it is said once
            log.warning(
                "No language model is connected: the answers are a simulation. For real ones set OPENAI_API_KEY, "
                "or OPENAI_BASE_URL for any OpenAI-compatible server, and start again."
            )

    def _perform(self, call: Call, pace: _Pace) -> Generator[Event]:
        asked = _last_question(call.messages)
        chance = random.Random(None if self.seed is None else f"{self.seed}:{asked}")
        commands, question = parse_commands(asked)
        failure, stall = commands.get("/fail"), commands.get("/stall")

        first_token = chance.uniform(0.6, 1.4) * self.first_token
        if failure in REFUSALS:
            pace.wait(first_token)
            raise REFUSALS[failure]()
        call.accepted()
        pace.wait(inf if stall == "first" else first_token)

        usage = Usage(sum(len(pieces(_text(message))) for message in call.messages), 0)
        for event in self._script(call, question, commands, chance):
            produced = usage.completion_tokens
            if call.max_tokens is not None and produced >= call.max_tokens:
                call.usage, call.finish_reason = usage, "length"
                return
            if failure == "midway" and produced == MIDWAY:
                break
            if produced:
                silence = float(stall or inf) if stall is not None and produced == MIDWAY else 0.0
                pace.wait(chance.uniform(0.4, 1.6) / self.rate + silence)
            usage += Usage(0, 1, reasoning_tokens=int(isinstance(event, Reasoning)))
            yield event
        if failure == "midway":
            raise UpstreamTruncated
        call.usage, call.finish_reason = usage, "tool_calls" if "/tool" in commands else "stop"

    def _script(self, call: Call, question: str, commands: dict[str, str], chance: random.Random) -> Generator[Event]:
        if "/think" in commands:
            yield from map(Reasoning, pieces(REASONING.format(question=question or "nothing in particular")))
        if (schema := _schema(call)) is not None:
            yield from map(Token, pieces(_document(schema, call.messages)))
            return
        if "/echo" in commands:
            yield from map(Token, pieces(question))
            return
        if any(message.get("role") == "system" and "be spoken" in _text(message) for message in call.messages):
            yield from map(Token, pieces(SPOKEN.format(question=question or "nothing") + chance.choice(SAID)))
            return
        if not any(message.get("role") == "assistant" for message in call.messages):
            commands_in_words = ", ".join(f"`{command}`" for command in COMMANDS)
            yield from map(Token, pieces(NOTICE.format(commands=commands_in_words)))
        if "/tool" in commands:
            yield from map(Token, pieces("I need to look that up, so I ask for a tool.\n"))
            arguments = json.dumps({"query": question or "the weather in Oslo", "limit": 3})
            yield Tool({"id": f"call_{chance.getrandbits(48):012x}", "name": "search", "arguments": arguments})
            return
        yield from map(Token, pieces(LONG if "/long" in commands else _choose(question, chance)))


class _Pace:
    """Waits of one call, which its time-outs and `Call.cancel` end early.

    Waits add up on a schedule instead of on the clock, so that a slow reader gets what was due in one go, as
    from a socket, and the rate comes out right however coarse the timer is.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.began = self.due = time.monotonic()
        self.last_piece: float | None = None
        self._left = threading.Event()
        self.interrupt = self._left.set

    def wait(self, seconds: float) -> None:
        """Wait for a piece of the answer.

        :raises UpstreamTimeout: when one of the call's time-outs is over first.
        :raises RunCancelled: when the call is cancelled.
        """
        previous = self.due
        self.due += seconds
        deadline, phase = self._deadline(previous)
        until = min(self.due, deadline)
        delay = until - time.monotonic()
        if self.call.cancelled or self._left.wait(None if until == inf else max(0.0, delay)):
            raise RunCancelled
        if deadline < self.due:
            raise UpstreamTimeout(phase)
        self.last_piece = self.due

    def _deadline(self, previous: float) -> tuple[float, str]:
        limits = self.call.timeouts
        if self.last_piece is None:
            piece = (self.began + _or_inf(limits.first_token), "first_token")
        else:
            piece = (previous + _or_inf(limits.idle), "idle")
        return min(piece, (self.began + _or_inf(limits.total), "total"))


def parse_commands(question: str) -> tuple[dict[str, str], str]:
    """Split the commands that a question opens with from the rest: each with its one word, or ""."""
    commands: dict[str, str] = {}
    while (match := COMMAND.match(question)) and (command := match[1]) in COMMANDS:
        takes_it = match[2] in ARGUMENTS.get(command, ())
        commands[command] = match[2] if takes_it else ""
        question = question[match.end(2 if takes_it else 1) :]
    return commands, question.strip()


def pieces(text: str) -> list[str]:
    """Cut a text about where a tokenizer would."""
    return PIECES.findall(text)


def _last_question(messages: Sequence[Message]) -> str:
    """What the user said last. That an answer was sent back is not said by the user."""
    said = (_text(message) for message in reversed(messages) if message.get("role") == "user")
    return next((text for text in said if not text.startswith(CORRECTION)), "")


def _schema(call: Call) -> Mapping[str, Any] | None:
    form = call.options.get("response_format") or {}
    schema: Mapping[str, Any] | None = (form.get("json_schema") or {}).get("schema")
    return schema


def _document(schema: Mapping[str, Any], messages: Sequence[Message]) -> str:
    """The JSON that is asked for; one that does not fit where the question wants that."""
    asked = _last_question(messages)
    fails = FAIL_SCHEMA.search(asked)
    document = invent(schema, parse_commands(FAIL_SCHEMA.sub("\n", asked))[1])
    sent_back = any(_text(message).startswith(CORRECTION) for message in messages)
    if fails is not None and (fails[1] or not sent_back):
        document = spoil(document)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _text(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)  # content parts, as OpenAI has them


def _choose(question: str, chance: random.Random) -> str:
    """The answer whose words occur in the question; any, for a question with none of them."""
    words = set(re.findall(r"\w+", question.lower()))
    fitting = [answer for keywords, answer in ANSWERS.items() if words & set(keywords.split())]
    answer = chance.choice(fitting or list(ANSWERS.values()))
    return f"{chance.choice(OPENINGS)}\n\n{answer}"


def _or_inf(seconds: float | None) -> float:
    return inf if seconds is None else seconds


SPOKEN = "You said: {question}. "
SAID = (
    "There is no language model behind this voice, so I can only tell you what I have understood. "
    "You can interrupt me at any time, and I will be silent at once. "
    "What you have heard of my answer by then is what our conversation keeps.",
    "This is a simulation, and what I say was written beforehand. "
    "Just speak while I do, and I will stop and listen. "
    "If you only cough, or say that you are following, I go on from where I was.",
    "That is as much as a simulation can make of it. "
    "A real model would answer you now, sentence by sentence, and each is spoken as soon as it is complete. "
    "So the first words come early, however long the answer is.",
)
NOTICE = """\
> **This is a simulation:** no language model is connected, and what follows was written beforehand. For real \
answers set `OPENAI_API_KEY`, or `OPENAI_BASE_URL` for any OpenAI-compatible server, and start again. A question \
may open with {commands} to see how that looks.

"""

REASONING = """\
The question is "{question}". I am a simulation, so there is nothing to find out; but a model would now weigh \
what was asked, recall what it knows, and settle on an order: first the short answer, then the reasons, \
then an example. That is enough. I can start to write.
"""

OPENINGS = (
    "Good question. Here is the short of it.",
    "Gladly. This is what matters most.",
    "Let's take it one step at a time.",
    "There is more than one way to look at this; here is the one I would begin with.",
)

_STREAMING = """\
## Why answers are streamed

A language model writes one *token* after another, roughly four characters each. Waiting for the last of them \
means looking at an empty page; showing each as it arrives means reading along. Two figures say how that \
feels:

1. **Time to first token**: how long the page stays empty. Below half a second feels immediate.
2. **Tokens per second**: how fast the text grows. People read at about 6, and skim at about 20.

### What the browser receives

Server-sent events are lines of text over plain HTTP. Every event carries an `id`, so that a client whose \
connection broke can say how far it has got:

```http
GET /api/runs/7f3c/events HTTP/1.1
Last-Event-ID: 7f3c:1-42
Accept: text/event-stream
```

The format is described in the [HTML standard](https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

_CODE = """\
## A small example

This function yields the events of a stream, whatever way the network has cut its bytes:

```python
def events(chunks):
    rest = b""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\\n\\n")
        for block in complete:
            yield [line[6:] for line in block.split(b"\\n") if line.startswith(b"data: ")]
```

Three things are worth a second look:

- `rest` keeps the **incomplete** block for the next round.
- A chunk may hold *no* event, or a dozen.
- What is left over at the end is discarded: an event ends with a blank line, or it was cut.

The [Python documentation](https://docs.python.org/3/howto/functional.html#generators) explains generators well.
"""

_TABLE = """\
## Side by side

| Transport | Direction | Reconnects by itself | Good for |
|---|---|:-:|---|
| Server-sent events | server to client | yes | answers that a user watches |
| WebSocket | both ways | no | voice, typing while the model writes |
| Long polling | server to client | yes | old proxies |
| A job and its status | either | does not matter | work that takes minutes |

**In short:** take the plainest one that does the work. If the client has nothing to say while the server writes, \
that is server-sent events; [MDN](https://developer.mozilla.org/docs/Web/API/Server-sent_events) has the details.
"""

_PLAN = """\
## A plan in four steps

1. **Write down the goal** in one sentence. If it takes two, there are two goals.
2. **Find the smallest thing** that would already be useful:
   - something a person can try,
   - something that can be thrown away.
3. **Try it with somebody** who has not seen it before, and say nothing while they do.
4. **Keep what worked.** Repeat from step 2.

> Plans are worthless, but planning is everything.

A first week might look like this:

| Day | What | Done when |
|---|---|---|
| Monday | the goal | it fits on a card |
| Tuesday | a first draft | somebody else can open it |
| Friday | a demonstration | there is one thing to change |
"""

# By the words of a question that an answer fits.
ANSWERS = {
    "stream streamed streaming streams sse token tokens latency fast": _STREAMING,
    "code python javascript function program example script bug": _CODE,
    "table compare comparison versus vs difference better transport websocket": _TABLE,
    "plan steps list how trip week project recipe organise organize": _PLAN,
}
LONG = "# The long answer\n\n" + "\n".join(f"{text}\n---\n" for text in (*ANSWERS.values(), *ANSWERS.values()))
