"""Real Redis servers as processes of a test: alone, with replicas, and watched by sentinels."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.components import require, spawn
from tests.puppet import eventually

PATIENCE = 10.0
"""Seconds that a server gets to start or to end."""

# Below the ports that Linux gives to outgoing connections: a client that tries and tries to reach a server that is
# down would sooner or later be given the server's own port, connect to itself, and keep the server from coming back.
PORTS = range(20_000, 32_768)

# Not the shared generator: Hypothesis seeds it alike in every process.
CHANCE = random.SystemRandom()

INSPECTOR = "inspector"
FLAGS = {"P": "pubsub", "M": "master", "S": "replica"}


@dataclass(frozen=True)
class Account:
    """Who may do what on a server that asks for a password.

    :param name: the user; `default` is the one whom clients that give no name are.
    :param rules: as in `ACL SETUSER`.
    """

    password: str
    name: str = "default"
    rules: str = "~* &* +@all"

    @property
    def credentials(self) -> str:
        """As they stand in a URL."""
        return f"{'' if self.name == 'default' else quote(self.name, safe='')}:{quote(self.password, safe='')}@"


class RedisServer:
    """A Redis of a test's own, which runs from `start` to `stop` or `kill` and keeps its address when it comes back.

    As a context manager it starts at once, and nothing of it is left at the end.

    :param account: without one the server asks for no password.
    :param persistent: whether what was acknowledged is there again after a restart, even after `kill`.
    :param replica_of: the server whose data it copies.
    :param settings: further ones of redis.conf, with underscores: `maxmemory="2mb"`.
    """

    def __init__(
        self,
        *,
        transport: Literal["tcp", "unix", "tls"] = "tcp",
        account: Account | None = None,
        persistent: bool = False,
        replica_of: RedisServer | None = None,
        **settings: Any,
    ) -> None:
        self.program = require("redis-tls" if transport == "tls" else "redis-server")
        self.transport = transport
        self.account = account
        # A Unix socket's path may have 107 bytes, which is less than pytest's directories may need.
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.log = self.directory / "log"
        self.port = 0 if transport == "unix" else CHANCE.choice(PORTS)
        self.settings = {"dir": self.directory, "save": "", "appendonly": "no", "bind": "127.0.0.1"}
        self.settings |= {"repl-diskless-sync-delay": 0}  # not 5 s, for more replicas to come
        if persistent:
            self.settings |= {"appendonly": "yes", "appendfsync": "always"}
        if transport == "unix":
            self.settings |= {"unixsocket": self.directory / "redis.sock"}
        if transport == "tls":
            self.settings |= self._certificates()
        if account:
            self.settings |= {"aclfile": self._acl_file(account)}
        if replica_of:
            self.settings |= {"replicaof": f"127.0.0.1 {replica_of.port}"}
            if replica_of.account:
                self.settings |= {"masteruser": INSPECTOR, "masterauth": INSPECTOR}
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._inspector: redis.Redis | None = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What a client is given. For TLS it names the authority's certificate too."""
        return self._url(self.account.credentials if self.account else "")

    @property
    def pid(self) -> int | None:
        """The process, or None where none runs."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        assert self._process is None, "it runs already"
        chosen_now = not self.log.exists()
        deadline = time.monotonic() + PATIENCE
        while not self._try_to_start(deadline):
            assert "in use" in self.news and time.monotonic() < deadline, f"Redis did not start: {self.news}"
            if chosen_now:
                self.port, self._inspector = CHANCE.choice(PORTS), None
            else:  # clients know this one, and whoever has it now may let it go
                time.sleep(0.05)
        return self

    def stop(self) -> None:
        """End the server in good order, by SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """End and start the server, at the same address. Unless it is persistent, its data is lost."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """End the server and delete its files."""
        self.kill()
        if self._inspector:
            self._inspector.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open and are still accepted, by the kernel, but nothing answers."""
        assert self._process, "it does not run"
        self._process.send_signal(signal.SIGSTOP)
        # The signal is only on its way so far.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """End the pause, if there is one."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def client(self) -> redis.Redis:
        """A client to look with: it may do everything, tries once only, and is none of the `connections`."""
        if self._inspector is None:
            credentials = Account(INSPECTOR, name=INSPECTOR).credentials if self.account else ""
            self._inspector = redis.Redis.from_url(
                self._url(credentials), client_name=INSPECTOR, decode_responses=True, retry=Retry(NoBackoff(), 0)
            )
        return self._inspector

    def connections(self) -> Counter[str]:
        """How many there are of each kind: `normal`, `pubsub`, `replica`, `master`."""
        clients = [client for client in self.client().client_list() if client["name"] != INSPECTOR]
        return Counter(next((FLAGS[flag] for flag in client["flags"] if flag in FLAGS), "normal") for client in clients)

    def commands(self) -> Counter[str]:
        """How often each command was called since the start, those by scripts and by `client` among them."""
        stats = self.client().info("commandstats")
        return Counter({name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()})

    def channels(self) -> list[str]:
        """The channels that somebody listens to."""
        return sorted(self.client().pubsub_channels())

    def keys(self, pattern: str = "*") -> list[str]:
        """The names of all that is stored."""
        return sorted(self.client().scan_iter(pattern, count=1000))

    @property
    def news(self) -> str:
        """What it has logged since it was last started."""
        return self.log.read_text(errors="replace")

    def _try_to_start(self, deadline: float) -> bool:
        """Start a process; whether it is there to stay."""
        self._process = spawn(self._command(), self.log)
        while self._process.poll() is None:
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self.kill()
                return False
            time.sleep(0.002)
        self._process = None
        return False

    def _answers(self) -> bool:
        """Whether it is this server that answers at its address, and with its data loaded."""
        try:
            self.client().ping()  # refused while it loads, unlike INFO
            return self.client().info("server")["process_id"] == self.pid
        except redis.RedisError:
            return False

    def _command(self) -> list[str]:
        port = {"port": 0, "tls-port": self.port} if self.transport == "tls" else {"port": self.port}
        settings = ((f"--{name}", str(value)) for name, value in (self.settings | port).items())
        return [self.program, *itertools.chain.from_iterable(settings)]

    def _url(self, credentials: str) -> str:
        if self.transport == "unix":
            return f"unix://{credentials}{self.settings['unixsocket']}?db=0"
        if self.transport == "tls":
            return f"rediss://{credentials}127.0.0.1:{self.port}/0?ssl_ca_certs={self.settings['tls-ca-cert-file']}"
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # one that is paused would not see SIGTERM
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            if self._inspector:
                self._inspector.connection_pool.disconnect()

    def _certificates(self) -> dict[str, Any]:
        import trustme

        authority = trustme.CA()
        own = authority.issue_cert("127.0.0.1", "localhost")
        pems = {"ca-cert": authority.cert_pem, "cert": own.cert_chain_pems[0], "key": own.private_key_pem}
        settings: dict[str, Any] = {"tls-auth-clients": "no"}
        for name, pem in pems.items():
            settings[f"tls-{name}-file"] = self.directory / f"{name}.pem"
            pem.write_to_path(self.directory / f"{name}.pem")
        return settings

    def _acl_file(self, account: Account) -> Path:
        """The account's rules must not keep the test from looking, so that the inspector has a name of its own."""
        users = [] if account.name == "default" else ["user default off"]
        users.append(f"user {account.name} on >{account.password} {account.rules}")
        users.append(f"user {INSPECTOR} on >{INSPECTOR} ~* &* +@all")
        path = self.directory / "users.acl"
        path.write_text("\n".join(users) + "\n")
        return path


class Sentinel(RedisServer):
    """A sentinel, which watches a master and the replicas that the master tells it of.

    :param patience: milliseconds of silence after which it takes the master for dead.
    """

    def __init__(self, master: RedisServer, *, patience: int) -> None:
        super().__init__()
        self.program = require("redis-sentinel")
        self.master = master
        self.patience = patience

    def _command(self) -> list[str]:
        # It takes no options but by a file, in which it keeps its state as well.
        path = self.directory / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor {Sentinels.name} 127.0.0.1 {self.master.port} 2\n"
            f"sentinel down-after-milliseconds {Sentinels.name} {self.patience}\n"
            f"sentinel failover-timeout {Sentinels.name} 2000\n"
        )
        return [self.program, str(path), "--sentinel"]


class Sentinels:
    """A master, two replicas, and three sentinels that give the master up after half a second of silence."""

    name = "mymaster"

    # Their own pace is one message in 1 to 10 s. While they fail over they ask replicas only once a second, and take
    # none of which the news is older than five pings: hence no shorter period for these. And a busy machine is not
    # a clock that jumped, after which they would do nothing for 30 s (tilt).
    PACE = (
        *("info-period", 200, "ping-period", 400, "ask-period", 100, "publish-period", 100),
        *("min-link-reconnect-period", 500, "election-timeout", 2000, "tilt-trigger", 60_000),
    )
    # The third lets the others go first: three that each vote for themselves elect nobody for seconds.
    PATIENCE = (500, 500, 1000)

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []
        self.sentinels: list[Sentinel] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with self._open:
            for _ in range(3):
                server = RedisServer(replica_of=self.servers[0] if self.servers else None)
                self.servers.append(self._open.enter_context(server))
            for patience in self.PATIENCE:
                sentinel = self._open.enter_context(Sentinel(self.servers[0], patience=patience))
                sentinel.client().execute_command("SENTINEL", "DEBUG", *self.PACE)
                self.sentinels.append(sentinel)
            eventually(self._settled, timeout=30)
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{addresses}/{self.name}/0"

    def master(self) -> tuple[str, int]:
        """The address of the master, as most of the sentinels that run have it now."""
        running = [sentinel for sentinel in self.sentinels if sentinel.pid]
        said = Counter(sentinel.client().sentinel_get_master_addr_by_name(self.name) for sentinel in running)
        return said.most_common(1)[0][0]

    def master_server(self) -> RedisServer:
        _, port = self.master()
        return next(server for server in self.servers if server.port == port)

    def fail_over(self) -> tuple[str, int]:
        """Kill the master, wait until another has its place and the last replica, and return its address.

        The one that was killed may be started again: it comes back as a replica.
        """
        eventually(self._settled, timeout=30)  # two fail-overs that overlap can leave a sentinel stuck
        self.master_server().kill()
        eventually(self._settled, timeout=30)
        return self.master()

    def _settled(self) -> bool:
        """Whether all sentinels that run know each other, and agree on a master that all other servers copy."""
        master = self.master_server()
        sentinels = [sentinel.client() for sentinel in self.sentinels if sentinel.pid]
        states = [client.sentinel_master(self.name) for client in sentinels]
        known = [client.sentinel_slaves(self.name) for client in sentinels]
        copies = sorted(server.port for server in self.servers if server.pid and server is not master)
        return (
            bool(master.pid)
            and all((state["port"], state["flags"]) == (master.port, "master") for state in states)
            and all(state["num-other-sentinels"] == len(self.sentinels) - 1 for state in states)
            and all(sorted(r["port"] for r in replicas if in_sync(r, master)) == copies for replicas in known)
        )


def in_sync(replica: dict[str, Any], master: RedisServer) -> bool:
    """Whether a sentinel has seen a replica copy that master."""
    seen = (replica["flags"], replica["master-link-status"], replica["master-port"])
    return seen == ("slave", "ok", master.port)
