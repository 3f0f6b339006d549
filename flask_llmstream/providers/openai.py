"""Models behind OpenAI's chat completions: OpenAI itself, and every server that speaks its protocol.

Configuration, authentication and errors are the official client's. Its response is read as raw bytes and decoded
here, and the transport below it is our own where nothing speaks against it: that takes a fifth of the time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING

from ..errors import ModelNotConfigured
from ..events import Event
from . import Call, Reply

if TYPE_CHECKING:
    import openai

    from .openai_session import Session

DEFAULT_MODEL = "gpt-5.4-mini"


class OpenAI:
    """A model of OpenAI, or of any server that speaks its protocol (vLLM, Ollama, llama.cpp and many more).

    What is left out comes from the environment, as with the official client: ``OPENAI_API_KEY``,
    ``OPENAI_BASE_URL`` and all others that it reads. A base URL without a key is enough: local servers need none.
    Nothing is read or opened before it is used, so one may be made anywhere, also before a fork.

    :param name: the model for calls that name none. By default ``OPENAI_MODEL`` from the environment; without it
        a small model of OpenAI or, from any other server, the first one that it lists.
    :param client: an ``openai.OpenAI`` (or ``AzureOpenAI``) of your own, for what else is to be set. It keeps its
        own HTTP transport. Its retries are not used: repeating a call is the run's business.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        client: openai.OpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
    ) -> None:
        self._name = name
        self._client = client
        self._api_key = api_key
        self._base_url = base_url
        self._session: Session | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model that a call gets which names none; empty for whichever the server lists first."""
        if given := self._name or os.environ.get("OPENAI_MODEL"):
            return given
        if self._client is not None:
            ours = "api.openai.com" in str(self._client.base_url)
        else:
            ours = self.base_url is None or "api.openai.com" in self.base_url
        return DEFAULT_MODEL if ours else ""

    @property
    def base_url(self) -> str | None:
        """Where the server is; None for OpenAI itself."""
        return self._base_url or os.environ.get("OPENAI_BASE_URL") or None

    @property
    def configured(self) -> bool:
        """Whether a key, a base URL or a client is there. Asks nobody and opens nothing."""
        return bool(self._client or self._api_key or os.environ.get("OPENAI_API_KEY") or self.base_url)

    def stream(self, call: Call) -> Generator[Event]:
        """Yield the answer as it arrives.

        :raises ModelNotConfigured: there is neither a key nor a base URL.
        """
        return self._open().stream(call)

    def reply(self, call: Call) -> Reply:
        """The whole answer at once.

        :raises ModelNotConfigured: there is neither a key nor a base URL.
        """
        return self._open().reply(call)

    def warm(self) -> None:
        """Open a connection in the background, so that the first answer need not wait for it."""
        if self.configured:
            self._open().warm()

    def close(self) -> None:
        """Give back connections. A later call opens new ones."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open(self) -> Session:
        """This process's session: after a fork the parent's connections must not be used."""
        session = self._session
        if session is not None and session.pid == os.getpid():
            return session
        with self._lock:
            if self._session is None or self._session.pid != os.getpid():
                self._session = self._new_session()
            return self._session

    def _new_session(self) -> Session:
        if not self.configured:
            raise ModelNotConfigured(
                "No language model is configured: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that speaks "
                "OpenAI's protocol."
            )
        # Late, because the official client takes half a second and 40 MB, also where another model is used.
        from .openai_session import Session

        return Session(self.name, client=self._client, api_key=self._api_key, base_url=self.base_url)
