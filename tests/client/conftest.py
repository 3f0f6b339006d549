from __future__ import annotations

import threading
import wave
from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests import contexts
from tests.client.server import ScriptedServer
from tests.client.voice_server import VoiceServer, tone
from tests.components import require
from tests.conftest import BROWSER_ARGUMENTS
from tests.contexts import SharedContext
from tests.puppet import eventually


def serve() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        with suppress(AssertionError):  # what a page has just sent is under way
            eventually(lambda: not left(server))
        server.shutdown()
        thread.join()
        unexpected = list(server.unexpected)  # before the page asks again, since its connections are cut
    assert not unexpected, "requests that nothing was put down for"
    assert not left(server), f"requests that did not come: {left(server)}"


def left(server: ScriptedServer) -> list[str]:
    return [line for line, answers in server.answers.items() if answers]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    yield from serve()


@pytest.fixture
def foreign() -> Iterator[ScriptedServer]:
    """A server of another origin."""
    yield from serve()


@pytest.fixture(scope="module")
def shared_context(browser: Browser) -> Iterator[SharedContext]:
    with contexts.shared(browser) as context:
        yield context


@pytest.fixture
def blank(shared_context: SharedContext) -> Iterator[Page]:
    """A page that has loaded nothing yet; it may have no error that nobody caught."""
    with shared_context.lend() as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(error.message))
        page.errors = errors  # type: ignore[attr-defined]
        yield page
    assert not errors, f"uncaught in the page: {errors}"


@pytest.fixture
def page(blank: Page, server: ScriptedServer) -> Page:
    """A page with the client loaded."""
    return opened(blank, server.url)


def opened(page: Page, url: str) -> Page:
    page.goto(f"{url}/")
    page.wait_for_function("window.ready")
    return page


@pytest.fixture(scope="session")
def talking_browser(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium whose microphone hears a second of a tone of 1 kHz, a second of silence, and so on."""
    heard = tmp_path_factory.mktemp("voice") / "tone.wav"
    with wave.open(str(heard), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(tone(48_000, hertz=1000, rate=48_000, amplitude=8000) + bytes(96_000))
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    microphone += [f"--use-file-for-fake-audio-capture={heard}", "--autoplay-policy=no-user-gesture-required"]
    talking = browser.browser_type.launch(executable_path=require("chromium"), args=[*BROWSER_ARGUMENTS, *microphone])
    yield talking
    talking.close()


@pytest.fixture(scope="session")
def exchange() -> Iterator[VoiceServer]:
    """One voice server for all tests of a process; `voice` forgets what a test did with it."""
    server = VoiceServer()
    yield server
    server.close()


@pytest.fixture
def voice(exchange: VoiceServer) -> Iterator[VoiceServer]:
    yield exchange
    exchange.reset()


@pytest.fixture(scope="session")
def talking(talking_browser: Browser) -> Iterator[BrowserContext]:
    """Its windows: a context for each test would take longer than most tests do."""
    with talking_browser.new_context() as context:
        yield context


@pytest.fixture
def phone(talking: BrowserContext, voice: VoiceServer) -> Iterator[Page]:
    """A page with the client loaded, in a browser that hears something."""
    yield from connected(talking, voice)


@pytest.fixture
def deaf_phone(browser: Browser, voice: VoiceServer) -> Iterator[Page]:
    """The same in a browser that has no microphone, and lets nothing sound that nobody asked for."""
    with browser.new_context() as context:
        yield from connected(context, voice)


def connected(context: BrowserContext, voice: VoiceServer) -> Iterator[Page]:
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(error.message))
    page.goto(f"{voice.url}/")
    page.evaluate("(async () => { while (!window.ready) await new Promise((go) => setTimeout(go, 5)); })()")
    yield page
    page.close()
    assert not errors, f"uncaught in the page: {errors}"
