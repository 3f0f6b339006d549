"""The callers of the voice benchmark, a process of its own: they speak in real time, listen, and sometimes interrupt.

It reads a :class:`Callers` as JSON from its command line. When all calls stand it prints a line and waits for one; when
their time is over likewise, while the line stays open; then it ends the calls and prints its report as JSON. While it
runs it only waits, reads, writes and looks at the clock, so that it stays far cheaper than what it measures.
"""

from __future__ import annotations

import gc
import heapq
import json
import random
import selectors
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from benchmarks import voice_sound
from benchmarks.voice_line import Line
from benchmarks.voice_sound import FRAME, RATE, Question

FRAME_SECONDS = FRAME / RATE
HEARD_AT = 24_000
"""Samples a second of the answers."""
TOLD_EVERY = 0.1
"""Seconds between two reports of what was played."""
PAUSE = (0.3, 0.9)
"""Seconds between the end of an answer and the next question."""
INTERRUPTED = 0.5
"""Of the answers."""
INTERRUPTED_AFTER = (0.4, 1.2)
"""Seconds of an answer after which it is interrupted."""
PATIENCE = 15.0
"""Seconds after which an answer that has not come is given up."""
LAG = 0.0213
"""Seconds that a connection's own clock is apart from the one before it, so that frames come evenly."""
UP = struct.Struct("<II")
DOWN, LAST = struct.Struct("<IHHI"), 1


@dataclass(frozen=True, kw_only=True)
class Callers:
    """Calls to make at a time.

    :param calls: how many.
    :param seconds: how long they ask.
    """

    host: str
    port: int
    path: str
    calls: int
    seconds: float


@dataclass(kw_only=True)
class Asked:
    """A question, and what came of it. Times are seconds of the machine's monotonic clock.

    :param onset: when its speech began, and until when it had been said.
    :param onset_ms: the same as positions in the call's audio, as the protocol counts.
    :param interrupts: whether it was said while an answer was heard.
    :param flush: when the answer before was to fall silent.
    :param audio: when the first audio of its own answer had come.
    :param began_ms: where the server says that the speech began, and ended.
    :param text: what was understood.
    """

    onset: float = 0.0
    end: float = 0.0
    onset_ms: float = 0.0
    end_ms: float = 0.0
    interrupts: bool = False
    flush: float | None = None
    audio: float | None = None
    began_ms: float | None = None
    stopped_ms: float | None = None
    text: str = ""


class Loudspeaker:
    """Where a call's answers are heard, sample by sample as time goes by."""

    def __init__(self) -> None:
        self.generation: int | None = None
        """What is heard now."""
        self.gaps: list[float] = []
        """Seconds for which answers fell silent in between."""
        self._got = 0
        self._dry_at = 0.0
        self._last = False
        self._told = 0
        self._told_at = 0.0

    def play(self, frame: bytes, now: float) -> bool:
        """Take some more; whether a generation begins with it."""
        _, generation, flags, _ = DOWN.unpack_from(frame)
        samples = (len(frame) - DOWN.size) // 2
        begins: bool = generation != self.generation
        if begins:
            self.generation, self._got, self._told = generation, 0, 0
            self._dry_at = self._told_at = now
        elif samples and now > self._dry_at:
            self.gaps.append(now - self._dry_at)
        self._got += samples
        self._dry_at = max(self._dry_at, now) + samples / HEARD_AT
        self._last = bool(flags & LAST)
        return begins

    def played(self, now: float) -> int:
        """Samples of the generation that have been heard."""
        return max(0, self._got - round(max(0.0, self._dry_at - now) * HEARD_AT))

    def news(self, now: float) -> int | None:
        """What has been played, if it is time to tell."""
        if self.generation is None:
            return None
        if now - self._told_at < TOLD_EVERY and not (now >= self._dry_at and self._told != self._got):
            return None
        self._told_at, self._told = now, self.played(now)
        return self._told

    def is_through(self, now: float) -> bool:
        """Whether an answer has been heard to its end, and that was told."""
        return self.generation is not None and self._last and now >= self._dry_at and self._told == self._got


class Caller:
    """One call.

    :param number: which one; its language, so that what providers took can be told apart.
    """

    def __init__(self, number: int, callers: Callers, questions: list[Question], room: list[bytes]) -> None:
        self.chance = random.Random(number)
        self.line = Line(callers.host, callers.port, callers.path)
        self.line.say({"type": "start", "language": f"call-{number}"})
        self.number = number
        self.ready = False
        self.asked: list[Asked] = []
        self.problems: list[str] = []
        self.ears = Loudspeaker()
        self.sent_at: list[float] = []
        self.lateness: list[float] = []
        self.over = False
        self._questions, self._room = questions, room
        self._speech: list[bytes] = []
        self._question: Question | None = None
        self._first_frame = 0
        self._seq = 0
        self._speak_at: float | None = None
        self._answered = True
        self.begun = 0.0

    def begin(self, now: float) -> None:
        self.begun = now
        self._speak_at = now + 1.0 + self.chance.uniform(0.0, 4.0)

    @property
    def due(self) -> float:
        """When the next frame has been recorded."""
        return self.begun + (len(self.sent_at) + 1) * FRAME_SECONDS

    def tick(self, now: float) -> None:
        """Send the next frame, and what else is due."""
        number = len(self.sent_at)
        self.lateness.append(now - self.due)
        if not self._speech and self._speak_at is not None and now >= self._speak_at and not self.over:
            self._ask(number)
        payload = self._speech.pop() if self._speech else self._room[number % len(self._room)]
        self.line.send(UP.pack(number, int(now * 1000) % 2**32) + payload)
        self.sent_at.append(now)
        if self._question is not None and not self._speech:
            self._said()
        self._report(now)

    def read(self) -> None:
        """Take what has come."""
        messages = self.line.read()
        now = monotonic()
        for message in messages:
            if isinstance(message, bytes):
                self._hear(message, now)
            else:
                self._meet(json.loads(message), now)
        if self.line.ended and not self.over:
            self.problems.append(f"the line was lost: {self.line.ended}")
            self.over = True

    def said_at(self, sample: float) -> float:
        """When a sample was said: as long before its frame was sent as it lies before the frame's end."""
        number = min(int(sample // FRAME), len(self.sent_at) - 1)
        return self.sent_at[number] - ((number + 1) * FRAME - sample) / RATE

    def finish(self) -> dict[str, Any]:
        """What became of it."""
        return {
            "asked": [asdict(asked) for asked in self.asked],
            "problems": self.problems,
            "gaps": self.ears.gaps,
            "lateness": self.lateness,
        }

    def _ask(self, number: int) -> None:
        self._speak_at = None
        self._question = self.chance.choice(self._questions)
        self._speech = self._question.frames[::-1]
        self._first_frame = number
        self.asked.append(Asked(interrupts=self.ears.generation is not None))
        self._answered = False

    def _said(self) -> None:
        assert self._question is not None
        first, asked = self._first_frame * FRAME, self.asked[-1]
        asked.onset, asked.end = self.said_at(first + self._question.onset), self.said_at(first + self._question.end)
        asked.onset_ms = (first + self._question.onset) * 1000 / RATE
        asked.end_ms = (first + self._question.end) * 1000 / RATE
        self._question = None
        self._speak_at = monotonic() + PATIENCE

    def _hear(self, frame: bytes, now: float) -> None:
        begins = self.ears.play(frame, now)
        if begins and not self._answered and self.asked[-1].end:
            self._answered = True
            self.asked[-1].audio = now
            interrupts = self.chance.random() < INTERRUPTED
            self._speak_at = now + self.chance.uniform(*INTERRUPTED_AFTER) if interrupts else None

    def _meet(self, message: dict[str, Any], now: float) -> None:
        kind = message["type"]
        self._seq = message.get("seq", self._seq)
        asked = self.asked[-1] if self.asked else Asked()
        if kind == "ready":
            self.ready = True
        elif kind == "flush":
            generation, played, self.ears.generation = self.ears.generation or 0, self.ears.played(now), None
            self.line.say({"type": "flushed", "generation": generation, "samples": played, "seq": self._seq})
            asked.flush = asked.flush or now
        elif kind == "speech_started" and not self._answered:
            asked.began_ms = asked.began_ms or message["at_ms"]
        elif kind == "speech_stopped" and not self._answered:
            asked.stopped_ms = message["at_ms"]
        elif kind == "transcript" and message["final"]:
            asked.text = message["text"]
        elif kind in ("problem", "error"):
            self.problems.append(json.dumps(message)[:300])

    def _report(self, now: float) -> None:
        if self.ears.is_through(now):
            self.ears.generation = None
            if self._answered:
                self._speak_at = now + self.chance.uniform(*PAUSE)
            return
        generation, played = self.ears.generation, self.ears.news(now)
        if played is not None:
            self.line.say({"type": "played", "generation": generation, "samples": played, "seq": self._seq})


def begin(callers: Callers) -> subprocess.Popen[str]:
    """Start the callers in a process of their own, and wait until all calls stand."""
    command = [sys.executable, "-m", "benchmarks.voice_load", json.dumps(asdict(callers))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait(process)
    return process


def wait(process: subprocess.Popen[str]) -> None:
    """Wait for the callers' next line."""
    assert process.stdout
    if not process.stdout.readline():
        raise SystemExit("The callers failed; their error is above.")


def go_on(process: subprocess.Popen[str]) -> None:
    """Let the callers go on."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the callers end their calls, and read their report."""
    output, _ = process.communicate("\n")
    if process.returncode:
        raise SystemExit("The callers failed; their error is above.")
    report: dict[str, Any] = json.loads(output)
    return report


def main() -> None:
    callers = Callers(**json.loads(sys.argv[1]))
    questions, room = voice_sound.questions(), voice_sound.room(1.0)
    calls = []
    with selectors.DefaultSelector() as selector:
        for number in range(callers.calls):
            call = Caller(number, callers, questions, room)
            selector.register(call.line.socket, selectors.EVENT_READ, call.read)
            calls.append(call)
        while not all(call.ready or call.over for call in calls):
            for key, _ in selector.select(PATIENCE):
                key.data()
        lost = [problem for call in calls for problem in call.problems]
        if lost:
            raise SystemExit(f"A call could not begin: {lost[0]}")
        print("ready", flush=True)
        sys.stdin.readline()
        gc.disable()
        cpu, begun = time.process_time(), monotonic()
        queue = []
        for call in calls:
            call.begin(begun + call.number * LAG)
            queue.append((call.due, call.number))
        _run(calls, queue, selector, until=begun + callers.seconds)
        for call in calls:
            call.over = True
        _run(calls, queue, selector, until=monotonic() + 8.0)
        cpu = time.process_time() - cpu
        seconds = monotonic() - begun
        print("over", flush=True)
        with open(0, closefd=False) as line:
            selector.register(line, selectors.EVENT_READ, _stop)
            _run(calls, queue, selector, until=monotonic() + 60)
    for call in calls:
        call.line.close()
    json.dump({"calls": [call.finish() for call in calls], "cpu_seconds": cpu, "seconds": seconds}, sys.stdout)


class _Stopped(Exception):
    """The callers were told to stop."""


def _stop() -> None:
    raise _Stopped


def _run(calls: list[Caller], queue: list[tuple[float, int]], selector: Any, *, until: float) -> None:
    heapq.heapify(queue)
    try:
        while (now := monotonic()) < until:
            while queue[0][0] <= now:
                call = calls[heapq.heappop(queue)[1]]
                if not call.line.ended:
                    call.tick(monotonic())
                else:
                    call.sent_at.append(now)
                heapq.heappush(queue, (call.due, call.number))
            for key, _ in selector.select(max(0.0, queue[0][0] - monotonic())):
                key.data()
    except _Stopped:
        pass


if __name__ == "__main__":
    main()
