"""What drives a batch: a job that has the inputs carried out, some at a time, and keeps the result of each once.

Each input is a run of its own, in a queue like any other. A driver that takes over from one that was killed goes on
from the results that are kept; an input that was being carried out has a run with the input's own key, which is joined
and not started anew.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, TypeVar

import msgspec

from .admission import LEAST_ANSWER, Allowance, Quota
from .anyrun import CUT_SHORT, AnyRun
from .batch import NAME, BatchOrder, clear, drop, kept, owner_of_parts
from .errors import (
    Aborted,
    AnswerCut,
    ConfigurationError,
    FeatureFailed,
    InvalidInput,
    LimitReached,
    LLMStreamError,
    Overloaded,
    RunCancelled,
    RunExpired,
    RunInterrupted,
    RunNotFound,
    StoreUnavailable,
)
from .events import Progress, Usage
from .features import Feature, JobFeature, ReplyFeature
from .leases import LEASE
from .ledger import Found
from .order import Claim, Order
from .record import Record
from .run import Run
from .runtime import current
from .schemas import Chat, load
from .store import digest
from .usage import standing
from .work import Work

log = logging.getLogger("flask_llmstream")

T = TypeVar("T")

ATTEMPTS = 1000
"""How many drivers a batch may lose."""
AT_ONCE = 100
"""Inputs that are carried out at a time, where the client wants no other number."""
MINUTE = 60
LOOKED_EVERY = 2.0
"""Seconds after which the runs that go on are looked at, in case the word of an end was lost."""
TOLD_EVERY = 0.5
"""Seconds, at least, between two words of the progress."""
WORDS = 500
"""Words of the progress at most, in all: its log is kept until the end, however long that takes."""
AWAY = 1.0
"""Seconds between two attempts while Redis is away."""
STOP_NOTICED = 0.25
"""Seconds in which a stop is noticed that cannot interrupt."""
FETCHED = 200
"""Inputs that are read at a time."""


def add_batches(record: Record) -> None:
    """Have batches be carried out in an application."""

    def drive(run: Run) -> Generator[Progress, None, dict[str, int]]:
        return Driver(record, run).drive()

    def receiver(run: AnyRun) -> str | None:
        feature = record.feature(run.about.data["feature"])
        url = feature.webhook if isinstance(feature, JobFeature) else None
        return url(run) if callable(url) else url

    record.inner[NAME] = JobFeature(
        name=NAME,
        rule=f"({NAME})",
        function=drive,
        schema=BatchOrder,
        attempts=ATTEMPTS,
        timeout=None,
        webhook=receiver,
        light=True,
    )
    record.after_end.append(lambda run: clear(record, run))
    record.after_forget.append(lambda run: drop(record, run))


@dataclass(frozen=True, slots=True)
class Part:
    """An input that is being carried out.

    :param tokens: that it may come to.
    """

    index: int
    tokens: int


class Driver:
    """Has the inputs of a batch carried out.

    :param run: the batch's own run.
    """

    def __init__(self, record: Record, run: Run) -> None:
        order = run.input
        feature = record.feature(order["feature"])
        if feature is None or feature.name in record.inner:
            raise ConfigurationError(f"There is no feature {order['feature']} any more.")
        self._record = record
        self._registry = record.registry
        self._run = run
        self._feature: Feature = feature
        self._total = int(order["total"])
        self._at_once = order["concurrency"] or AT_ONCE
        self._allowance = Allowance(starts=_a_minute(order["requests"]), tokens=_a_minute(order["tokens"]))
        self._budget = record.settings.token_budget
        self._batch = kept(record, run)
        self._owner = owner_of_parts(run)
        self._bell = current().bell()
        self._waiting: deque[int] = deque()
        self._parts: dict[str, Part] = {}
        self._heard: deque[str] = deque()
        self._fetched: dict[int, bytes] = {}
        self._in_touch = monotonic()
        self._looked_at = 0.0
        self._told_at = 0.0
        self._told = 0

    def drive(self) -> Generator[Progress, None, dict[str, int]]:
        """Carry out all that has no result yet.

        :returns: the counts.
        """
        store = self._record.store
        channel = store.key("feed", digest(self._owner))
        subscription = self._surely(lambda: store.subscribe(channel, self._hear, lost=self._missed))
        try:
            self._waiting.extend(self._surely(lambda: list(self._batch.undone(self._total))))
            while self._waiting or self._parts:
                pause = self._surely(self._step)
                yield from self._progress()
                if self._waiting or self._parts:
                    self._rest(min(pause, LOOKED_EVERY))
        finally:
            subscription.close()
        counts = self._surely(self._batch.counts)
        return {"total": self._total, "completed": counts.completed, "failed": counts.failed}

    def _step(self) -> float:
        """Start and collect what can be; the seconds after which more may be started."""
        self._require_hold()
        self._collect()
        pause = self._start_more()
        self._in_touch = monotonic()
        return pause

    def _surely(self, step: Callable[[], T]) -> T:
        """Do something as soon as Redis is there.

        :raises RunCancelled: the batch is stopped.
        """
        while True:
            if self._run.cancelled:
                raise RunCancelled
            try:
                return step()
            except StoreUnavailable as error:
                log.info("batch %s waits for Redis: %s", self._run.id, error.diagnosis)
                self._rest(AWAY)

    def _rest(self, seconds: float) -> None:
        """Wait for news."""
        until = monotonic() + seconds
        while not (self._heard or self._run.cancelled) and (left := until - monotonic()) > 0:
            self._bell.wait(min(left, STOP_NOTICED))

    def _require_hold(self) -> None:
        """Go no further where another driver may have taken over, while this one was out of touch.

        :raises RunCancelled: one has.
        """
        if monotonic() - self._in_touch < LEASE / 2:
            return
        found = self._registry.ledger.find(self._run.id)
        if found is None or found.terminal is not None or found.epoch != self._run.log.epoch:
            raise RunCancelled

    def _hear(self, message: bytes) -> None:
        if b'{"ended"' in message:
            self._heard.append(msgspec.json.decode(message.partition(b" ")[2])["ended"]["id"])
            self._bell.ring()

    def _missed(self) -> None:
        self._looked_at = 0.0
        self._bell.ring()

    def _start_more(self) -> float:
        """Start what may be started; the seconds after which more may be."""
        left = self._left_of_budget() if self._waiting and len(self._parts) < self._at_once else None
        while self._waiting and len(self._parts) < self._at_once:
            index = self._waiting[0]
            try:
                value, data = self._read(index)
                work = self._work(value)
                if left is not None:
                    left = self._take(left, work)
                run = self._start(index, value, data, work)
            except (LimitReached, Overloaded) as error:
                if error.retry_after is not None:
                    return error.retry_after
                self._fail(index, error)
            except (RunNotFound, RunExpired):  # of a run that was lost, the key will be, too
                self._waiting.rotate(-1)
                return LOOKED_EVERY
            except StoreUnavailable:
                raise
            except LLMStreamError as error:
                self._fail(index, error)
            except Exception:
                log.exception("input %d of batch %s could not be started", index, self._run.id)
                self._fail(index, FeatureFailed())
            else:
                self._parts[run.id] = Part(index, _most(work))
            self._waiting.popleft()
            self._fetched.pop(index, None)
        return LOOKED_EVERY

    def _read(self, index: int) -> tuple[Any, Any]:
        """An input: as its schema has it, and as it was sent.

        :raises InvalidInput: it is not valid.
        """
        if index not in self._fetched:
            self._fetched = dict(enumerate(self._batch.inputs(index, FETCHED), index))
        if index not in self._fetched:
            raise RunInterrupted("This input was lost before its turn came.")
        try:
            data = msgspec.json.decode(self._fetched[index])
        except (ValueError, RecursionError):
            raise InvalidInput("The input is not valid JSON.") from None
        value = load(self._record.schema(self._feature), data)
        if isinstance(value, Chat) and value.conversation is not None:
            message = "An input of a batch continues no conversation."
            raise InvalidInput(f"conversation: {message}", errors={"conversation": [message]})
        return value, data

    def _work(self, value: Any) -> Work:
        feature = self._feature
        work = self._record.work(feature, value)
        return replace(
            work,
            queue=feature.queue if isinstance(feature, JobFeature) else "default",
            attempts=work.attempts if isinstance(feature, JobFeature) else work.settings.attempts,
            grace=None,
            allowance=self._allowance,
            retention=self._record.settings.job_retention,
        )

    def _start(self, index: int, value: Any, data: Any, work: Work) -> AnyRun:
        batch, key = self._run, f"input:{index}"
        order = Order(
            feature=self._feature.name,
            owner=self._owner,
            user=batch.user,
            input=value,
            data=data,
            context=batch.context,
            extension=self._record.name,
            payer=batch.owner,
        )
        run, new = self._registry.start(order, Claim(self._owner, key, key, lasting=True), work)
        if not new:  # the driver that started it may have been killed before it was in its queue
            self._registry.look_after(run)
        return run

    def _left_of_budget(self) -> int | None:
        """The tokens that its owner may still use, without those of what goes on; None for any number."""
        if self._budget is None:
            return None
        [stands] = standing(self._record.store, self._run.owner, {"tokens": self._budget})
        return stands.quota - stands.used - sum(part.tokens for part in self._parts.values())

    def _take(self, left: int, work: Work) -> int:
        """Count one more input in.

        :returns: the tokens that are left then.
        :raises LimitReached: they do not suffice.
        """
        assert self._budget is not None
        least = work.prompt + min(work.settings.max_tokens, LEAST_ANSWER)
        if least > self._budget.n:
            raise LimitReached("tokens", "This is longer than your tokens suffice for at any time.")
        if least > left:
            raise LimitReached("tokens", "Your tokens do not suffice for this now.", retry_after=LOOKED_EVERY)
        return left - _most(work)

    def _collect(self) -> None:
        """Keep the results of what has ended."""
        now = monotonic()
        if now - self._looked_at > LOOKED_EVERY:
            self._looked_at = now
            self._heard.clear()
            ended = list(self._parts)
        else:
            heard = [self._heard.popleft() for _ in range(len(self._heard))]
            ended = [run_id for run_id in heard if run_id in self._parts]
        if not ended:
            return
        found = {one.id: one for one in self._registry.ledger.found(ended)}
        for run_id in ended:
            part, one = self._parts[run_id], found.get(run_id)
            if one is not None and one.terminal is None:
                continue
            if one is not None and not _taken_back(one):
                self._settle(part, one)
            elif not self._batch.has_result(part.index):
                self._waiting.append(part.index)
            del self._parts[run_id]

    def _settle(self, part: Part, found: Found) -> None:
        assert found.terminal is not None
        ending = msgspec.json.decode(found.terminal)
        usage = ending.get("usage")
        used = None if usage is None else msgspec.convert(usage, Usage)
        try:
            line = {"status": "completed", "result": self._result(found, ending)}
        except StoreUnavailable:
            raise
        except LLMStreamError as error:
            line = {"status": "failed", "error": ending.get("problem") or error.problem()}
        self._keep(part.index, line, used)
        if self._record.store.shared:
            self._registry.ledger.forget(found.id, found.about, found.epoch)
        else:
            with suppress(RunNotFound, RunExpired):
                self._registry.forget(self._registry.find(found.id, None))

    def _result(self, found: Found, ending: Mapping[str, Any]) -> Any:
        """What came of an input.

        :raises LLMStreamError: nothing did.
        """
        if "done" not in ending:
            raise FeatureFailed
        if ending.get("cancelled"):
            raise Aborted("This was stopped before there was an answer.", status=409, title="Stopped")
        if ending.get("finish_reason") in CUT_SHORT and ending.get("result") is None and "result_size" not in ending:
            raise AnswerCut
        result = ending.get("result")
        if "result_size" in ending:
            kept_apart = self._registry.ledger.result(found.id, found.epoch)
            if kept_apart is None:
                raise RunExpired
            result = msgspec.json.decode(kept_apart)
        if result is None:
            return {"text": self._registry.find(found.id, None).text}
        return {"text": result} if isinstance(result, str) and isinstance(self._feature, ReplyFeature) else result

    def _fail(self, index: int, error: LLMStreamError) -> None:
        self._keep(index, {"status": "failed", "error": error.problem()}, None)

    def _keep(self, index: int, line: Mapping[str, Any], used: Usage | None) -> None:
        self._batch.settle(index, line, used, payer=self._run.owner, budget=self._budget)

    def _progress(self) -> Generator[Progress]:
        now, room = monotonic(), self._run.log.limit // 2 - self._run.log.size
        done = self._total - len(self._waiting) - len(self._parts)
        if now - self._told_at > TOLD_EVERY and (done - self._told) * WORDS >= self._total and room > 0:
            self._told_at, self._told = now, done
            yield Progress(done / self._total, f"{done} of {self._total}")


def _taken_back(found: Found) -> bool:
    """Whether a run has ended without having begun: a driver could not put it into its queue."""
    problem = msgspec.json.decode(found.terminal or b"{}").get("problem", {})
    return found.started_at is None and problem.get("type") == RunInterrupted().problem()["type"]


def _most(work: Work) -> int:
    """The tokens that it may come to."""
    return work.prompt + work.settings.max_tokens


def _a_minute(n: int | None) -> Quota | None:
    return None if n is None else Quota(n, MINUTE)
