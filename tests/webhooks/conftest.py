from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trustme

from flask_llmstream import webhooks
from tests.jobs.house import House


class Names:
    """What the machine's resolver says of some names: one list of addresses after the other, the last again and again.

    A resolver of our own cannot be put in the place of the system's, so this stands between the two.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self._answers: dict[str, list[list[str]]] = {}
        self._system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def has(self, name: str, *answers: list[str]) -> None:
        self._answers[name] = list(answers)

    def _look_up(self, host: str, *args: Any, **more: Any) -> list[Any]:
        self.asked.append(host)
        answers = self._answers.get(host, [[host]])
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [info for address in addresses for info in self._system(address, *args, **more)]


@pytest.fixture
def names(monkeypatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority, monkeypatch, tmp_path) -> Iterator[None]:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    webhooks._tls.cache_clear()
    yield
    webhooks._tls.cache_clear()


@pytest.fixture
def house(request, store_server):
    """Opens applications: over the embedded store, and over a Redis with somebody at work."""
    server = None if store_server is None else request.getfixturevalue("redis_server")
    with ExitStack() as stack:
        yield House(server, stack)
