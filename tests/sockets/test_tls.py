"""TLS inside the server: one reads and another writes, and what OpenSSL holds back is seen."""

from __future__ import annotations

import re
import ssl
import sys
import threading

import pytest
import trustme
from websockets.sync.client import connect

from tests.components import spawn
from tests.servers.serving import ROOT, TROUBLE, until
from tests.sockets.client import PATIENCE
from tests.sockets.conftest import COMMANDS

ADDRESS = re.compile(r"https://([\d.:]+)")


@pytest.fixture(params=["gevent", "gthread"])
def address(request, tmp_path):
    """Where a server speaks TLS, and what its clients trust."""
    authority, log, pem = trustme.CA(), tmp_path / "log", tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    trust = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    command = f"{COMMANDS[request.param]} --certfile {pem} --keyfile {pem}"
    process = spawn([sys.executable, *command.split()], log, cwd=ROOT)
    try:
        yield until(lambda: ADDRESS.search(log.read_text()), patience=60)[1], trust
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert not TROUBLE.search(log.read_text())


def test_a_conversation_over_tls(address):
    where, trust = address
    with connect(f"wss://{where}/large", ssl=trust, max_size=None, proxy=None, open_timeout=PATIENCE) as client:
        for message in (b"", "hello", bytes(1 << 20)):
            client.send(message)
            assert client.recv() == message
        said = [bytes([n]) * 10007 for n in range(200)]
        speaker = threading.Thread(target=lambda: [client.send(message) for message in said])
        speaker.start()
        assert [client.recv() for _ in said] == said
        speaker.join()
    assert client.close_code == 1000
