"""What the documentation says of Redis: the rights of its user, every key with its type and life time, its memory."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from marshmallow import Schema, fields

from flask_llmstream import LLMStream, Run, batch, writer
from flask_llmstream.errors import UpstreamUnavailable
from flask_llmstream.ledger import Ledger
from flask_llmstream.registry import Registry
from flask_llmstream.store import RedisStore
from flask_llmstream.testing import ModelServer
from tests.conversation import QUESTION, ask, problem, text
from tests.jobs.house import Hands, ending, submit
from tests.orders import DONE, QUEUED, about_of, admit, claim_of
from tests.orders import ending as ending_of
from tests.puppet import Pause, Puppet, eventually, follow, stage
from tests.redis_server import RedisServer, Sentinels
from tests.servers.serving import KEY
from tests.workers.site import site

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "redis.md").read_text()
SOURCES = ROOT / "flask_llmstream"
PREFIX = "llmstream:"

BY_CLIENT = {"evalsha", "script|load", "client|setname"}
"""Commands that the client sends and no source names."""
BY_TEST = {"config|resetstat", "acl|log", "auth", "hello", "client|setinfo"}
"""Those that need no right, or are the test's own."""
PARTED = {"pubsub|numsub"}
"""Those that need no right for their first word alone."""

RETENTION = 90
JOB_RETENTION = 90
DAY = 86_400
WINDOW = 3_600
CONVERSATION_RETENTION = 7_200
TIMES = {
    "a day": DAY,
    "the window": WINDOW,
    "400 days": 400 * DAY,
    "10 minutes": 600,
    "`LLMSTREAM_RETENTION`": RETENTION,
    "`LLMSTREAM_RETENTION`, or gone": RETENTION,
    "twice `LLMSTREAM_RETENTION`": 2 * RETENTION,
    "`LLMSTREAM_CONVERSATION_RETENTION`": CONVERSATION_RETENTION,
    "a day and `LLMSTREAM_JOB_RETENTION`": DAY + JOB_RETENTION,
}
SLACK = 60
"""Seconds that a life time may have run down by when the test looks."""
CONFIG = {
    "RETENTION": RETENTION,
    "JOB_RETENTION": JOB_RETENTION,
    "CONVERSATION_RETENTION": CONVERSATION_RETENTION,
    "MAX_RUNS_PER_USER": 5,
    "STARTS_PER_USER": "1000/hour",
    "TOKEN_BUDGET": "1000000/hour",
}
TALK = "a-conversation-of-ann"
TOKEN = b'{"token":" word"}'

pytestmark = pytest.mark.needs("redis-server")


@dataclass(frozen=True)
class Row:
    """What the table says of a key."""

    type: str
    live: str
    ended: str


def table(heading: str, number: int = 1) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    _, *rows = section.split("\n\n|")[number].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


KEYS = {
    re.sub(r":<\w+>", "", cells[0].strip("`")): Row(
        {"sorted set": "zset"}.get(cells[1], cells[1]), live=cells[3], ended=cells[4]
    )
    for cells in table("What is in it")
}

CHANNELS = table("What is in it", 2)


def grants() -> list[list[str]]:
    """The words of the documented commands, from `ACL` on: what each process needs, and what jobs add."""
    commands = re.findall(r"^redis-cli (ACL SETUSER.*?[^\\])$", PAGE, re.MULTILINE | re.DOTALL)
    return [
        [word.replace("$PASSWORD", "secret") for word in shlex.split(command.replace("\\\n", " "))]
        for command in commands
    ]


def setinfo(client: redis.Redis) -> list[str]:
    """The right that newer servers know besides, and without which all works, too."""
    assert "`+client\\|setinfo`" in PAGE
    return ["+client|setinfo"] if "client|setinfo" in client.command_list() else []


def rights(grant: list[str]) -> set[str]:
    return {word[1:] for word in grant if word.startswith("+")}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is so at once."""
    monkeypatch.setattr(writer, "BACKOFF", 0.02)


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A Redis that has the documented user."""
    client = redis_server.client()
    for grant in grants():
        client.execute_command(*grant)
    client.execute_command("ACL", "SETUSER", "llmstream", *setinfo(client))
    client.acl_log_reset()
    yield redis_server
    client.acl_deluser("llmstream")


@pytest.fixture
def url(server: RedisServer) -> str:
    """Where the documented user finds it."""
    return server.url.replace("://", "://llmstream:secret@")


def live_through(server: RedisServer, url: str, look: Callable[[], Any]) -> Any:
    """Have two processes do all that there is to do.

    :returns: what `look` says while the only run is live.
    """
    pause = Pause()
    with (
        stage(Puppet(["Hel", pause, "lo"], ["Hello"]), REDIS_URL=url, **CONFIG) as (one, first),
        stage(Puppet(["Hello"]), REDIS_URL=url, **CONFIG) as (two, llm),
    ):
        declare(first)
        declare(llm)
        here, there = one.test_client(), two.test_client()
        question = {"conversation": TALK, "message": "Hello?"}
        answer = ask(here, body=question, headers={"Idempotency-Key": "k" * 32})
        heard, location = follow(answer), answer.headers["Location"]
        next(heard)
        assert pause.reached.wait(5)
        read = follow(there.get(f"{location}/events"))
        next(read)
        seen = look()
        stop_and_read_on(there, location, heard, read)
        converse(here, there, question)
        assert text(ask(here)) == "Hello"
        assert there.get("/api/usage").status_code == 200
        be_left_and_lost(llm.record(two).registry)
        work(server, here, llm.record(two).registry)
    return seen


class Word(Schema):
    word = fields.String(required=True)


def declare(llm: LLMStream) -> None:
    @llm.job("/api/repeat", input=Word)
    def repeat(run: Run) -> list[str]:
        if run.attempt == 1:
            raise UpstreamUnavailable
        return [run.input["word"]] * 20_000


def work(server: RedisServer, client: Any, worker: Registry) -> None:
    """Jobs that wait, fail, are tried again, stopped, deleted, and have a large result; and a batch of them."""
    hands = Hands(server, worker)
    stopped, deleted, done = (submit(client, "/api/repeat", {"word": word}) for word in ("stop", "delete", "whale"))
    assert client.post(f"{stopped}/cancel").json["status"] == "cancelled"
    assert client.delete(deleted).status_code == 204
    with hands.at_work():
        assert len(ending(client, done)["result"]) == 20_000
        inputs = [{"word": str(n)} for n in range(3)]
        all_of_them = client.post("/api/batches", json={"feature": "repeat", "inputs": inputs}).headers["Location"]
        assert ending(client, all_of_them)["request_counts"]["completed"] == 3
        assert client.get(f"{all_of_them}/results").text.count("\n") == 3
        unwanted = client.post("/api/batches", json={"feature": "repeat", "inputs": inputs}).headers["Location"]
        assert client.delete(unwanted).status_code == 204
        eventually(lambda: not server.client().exists(f"{PREFIX}leases"))


def stop_and_read_on(there: Any, location: str, heard: Any, read: Any) -> None:
    assert there.post(f"{location}/cancel").json["status"] == "cancelled"
    assert list(heard)[-1]["cancelled"] and list(read)[-1]["cancelled"]
    assert there.get("/api/runs").json["data"][0]["status"] == "cancelled"
    feed = there.get("/api/runs/events")
    assert b'{"runs":[]}' in next(iter(feed.response))
    feed.close()


def converse(here: Any, there: Any, question: dict[str, str]) -> None:
    assert text(ask(there, body=question)) == "Hello"
    messages = here.get(f"/api/conversations/{TALK}").json["messages"]
    assert [message["status"] for message in messages][1::2] == ["cancelled", "completed"]
    assert here.patch(f"/api/conversations/{TALK}", json={"title": "Greetings"}).status_code == 200
    other = ask(here, body=question | {"conversation": TALK + "-again"}, buffered=True).headers["Location"]
    assert there.delete(other).status_code == 204
    assert here.get(other).status_code == 404
    assert len(there.get("/api/conversations?limit=1").json["data"]) == 1
    assert there.delete(f"/api/conversations/{TALK}-again").status_code == 204


def be_left_and_lost(registry: Registry) -> None:
    """What befalls runs when processes are killed and Redis forgets, without the time that it takes."""
    ledger = registry.ledger
    admit(Ledger(ledger.store, retention=RETENTION, lease=0.001), "left", about_of(claim_of("left")))
    time.sleep(0.01)  # the lease
    registry._reap("left")
    assert registry.find("left", None).state == "failed"
    lost = about_of(claim_of("lost"))
    ledger.restore("lost", lost, 1, [QUEUED, TOKEN])
    assert ledger.frames.append([("lost", 1, 2, [TOKEN], 1.0)]) == [1]
    ledger.frames.touch("lost")
    assert ledger.frames.elsewhere("lost") is not None
    assert ledger.finish("lost", lost, ending_of(kept=3))[0] == "ended"
    ledger.let_go("lost")
    ledger.withdraw("withdrawn", about_of(claim_of("withdrawn")), DONE)


def test_the_rights_suffice(server, url, soon):
    live_through(server, url, lambda: None)
    assert server.client().acl_log() == []


def test_they_suffice_for_workers_and_none_is_too_many(server, url, tmp_path):
    client = server.client()
    with ModelServer(key=KEY) as model, site(AsUser(server, url), model, tmp_path) as works:
        client.config_resetstat()
        with works.worker("threads") as one, works.worker("fork") as other:
            for path in ("/api/tell", "/api/compute"):
                works.await_run(works.submit(path, json=QUESTION if path == "/api/tell" else {}), status="completed")
            for worker in (one, other):
                worker.tell()
                worker.wait()
        with works.worker("flask threads", "--burst", ready=False) as brief:
            assert brief.wait() == 0
    assert client.acl_log() == []
    used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    own, jobs = map(rights, grants())
    assert jobs - own == used - own - BY_CLIENT - BY_TEST


class AsUser:
    """A Redis to which others come as its documented user."""

    def __init__(self, server: RedisServer, url: str) -> None:
        self.url = url
        self.client = server.client


def test_the_rights_reach_nothing_else(server, url):
    with closing(redis.Redis.from_url(url)) as client:
        for words in (
            ("GET", "theirs"),
            ("PUBLISH", "theirs", 1),
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)


def test_no_right_is_missing_or_too_many(server):
    known = set(server.client().command_list())
    assert rights(grants()[0]) == (named_commands() & known) | BY_CLIENT


def named_commands() -> set[str]:
    """What the scripts call, and what the modules that have a store say in capital letters, a subcommand included."""
    named = set()
    for script in SOURCES.rglob("*.lua"):
        named |= {name.lower() for name in re.findall(r"redis\.p?call\('(\w+)'", script.read_text())}
    for module in SOURCES.rglob("*.py"):
        source = module.read_text()
        if "tore.command" in source or module.parent.name == "store":
            for words in re.findall(r'"([A-Z]+)"(?:, "([A-Z]+)")?', source):
                whole = "|".join(filter(None, words)).lower()
                named |= {whole, words[0].lower()} if whole not in PARTED else {whole}
    return named


def test_a_right_that_is_missing_is_said_to_be_so(server, url, caplog):
    server.client().execute_command("ACL", "SETUSER", "llmstream", "-evalsha")
    with stage(REDIS_URL=url) as (app, _):
        before = set(threading.enumerate())
        assert problem(ask(app))["type"].endswith(":store-unavailable")
        assert "evalsha" in caplog.text
        server.client().execute_command("ACL", "SETUSER", "llmstream", "+evalsha")
        eventually(lambda: set(threading.enumerate()) <= before)  # the start is taken back


@pytest.mark.needs("redis-sentinel")
def test_sentinels_ask_for_one_right():
    (command,) = re.findall(r"^redis-cli -p 26379 (ACL SETUSER .*)$", PAGE, re.MULTILINE)
    words = [word.replace("$PASSWORD", "secret") for word in shlex.split(command)]
    with Sentinels() as sentinels:
        for sentinel in sentinels.sentinels:
            sentinel.client().execute_command(*words, *setinfo(sentinel.client()))
            sentinel.client().acl_log_reset()
        own = "?sentinel_username=llmstream&sentinel_password=secret"
        with stage(REDIS_URL=sentinels.url + own) as (app, _):
            assert text(ask(app)) == "Hello"
        assert [sentinel.client().acl_log() for sentinel in sentinels.sentinels] == [[], [], []]


def stored(server: RedisServer) -> dict[str, list[tuple[str, int]]]:
    """Type and life time in seconds of all keys, by the first part of their names."""
    client, names = server.client(), server.keys()
    found: dict[str, list[tuple[str, int]]] = {}
    for name in names:
        if name.startswith("rq:"):
            continue  # RQ's own affair
        assert name.startswith(PREFIX)
        kind, _, more = name.removeprefix(PREFIX).partition(":")
        if kind not in KEYS:
            kind = f"{kind}:{more.rpartition(':')[2]}"
        found.setdefault(kind, []).append((client.type(name), client.ttl(name)))
    return found


def assert_as_documented(found: dict[str, list[tuple[str, int]]], when: Callable[[Row], str]) -> None:
    lasting = {kind for kind, row in KEYS.items() if when(row) in TIMES}
    assert found.keys() == lasting, "keys are there that are not in the table, or the other way round"
    for kind, keys in found.items():
        for type_, left in keys:
            most = TIMES[when(KEYS[kind])]
            assert type_ == KEYS[kind].type, kind
            assert most - SLACK < left <= most, f"{kind} lives for {left} s"


def test_every_key_is_documented_with_its_type_and_life_time(redis_server, soon):
    live = live_through(redis_server, redis_server.url, lambda: stored(redis_server))
    assert_as_documented(live, lambda row: row.live)
    assert_as_documented(stored(redis_server), lambda row: row.ended)


def test_every_key_and_channel_that_has_a_name_is_documented():
    sources = [path.read_text() for pattern in ("*.py", "*.lua") for path in SOURCES.rglob(pattern)]
    named = {name for source in sources for name in re.findall(r"\bkey\(\s*\"(\w+)\"", source)}
    named |= {name for source in sources for name in re.findall(r"prefix \.\. '(\w+):", source)}
    channels = {cells[0].strip("`").partition(":")[0] for cells in CHANNELS}
    named.add(batch.NAME)
    assert named == {name.partition(":")[0] for name in KEYS} | channels


def test_the_channels_are_documented(redis_server, soon):
    heard = live_through(redis_server, redis_server.url, redis_server.channels)
    documented = {cells[0].strip("`").partition(":")[0] for cells in CHANNELS}
    assert {name.removeprefix(PREFIX).partition(":")[0] for name in heard} <= documented


def test_a_run_takes_the_memory_that_is_documented(redis_server):
    (kilobytes,) = re.findall(r"(\d+) KB for its log", PAGE)
    store = RedisStore(redis_server.url, PREFIX)
    with closing(store):
        ledger = Ledger(store, retention=RETENTION, lease=8)
        admit(ledger, "long")
        for n in range(1, 501):
            assert ledger.frames.append([("long", 1, n, [b'{"token":" word"}'], None)]) == [1]
    used = redis_server.client().memory_usage(f"{PREFIX}log:long", samples=0)
    assert used == pytest.approx(int(kilobytes) * 1000, rel=0.25)
