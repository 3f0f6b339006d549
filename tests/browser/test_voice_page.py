"""The page of the call: real speech goes in, through gunicorn with gevent, and comes out again."""

from __future__ import annotations

import re
import wave

import pytest
from playwright.sync_api import expect

from tests.browser.tab import Tab
from tests.components import require
from tests.conftest import BROWSER_ARGUMENTS
from tests.servers import serving
from tests.voices.people import RATE, somebody

pytestmark = pytest.mark.needs("chromium")

SPOKEN = pytest.mark.needs("flite")
GUNICORN = "-m gunicorn example_app:create_app() -b 127.0.0.1:0 --no-control-socket -k gevent -w 1 --graceful-timeout 1"
AS_IT_IS = """
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = ({ audio }) =>
        ask({ audio: { ...audio, echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
"""
"""Chromium takes a file's voice for too soft, and makes it so loud that it is distorted."""
QUESTION = "what is the weather today"


def silence(seconds):
    return bytes(2 * round(seconds * RATE))


@pytest.fixture(scope="module")
def speaker(browser, tmp_path_factory):
    """A browser before which somebody asks something, and then interrupts the answer."""
    heard = tmp_path_factory.mktemp("call") / "speech.wav"
    with wave.open(str(heard), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        question = somebody(QUESTION)
        interruption = somebody("tell me the story of the green house please")
        file.writeframes(silence(1.5) + question + silence(5) + interruption + silence(60))
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    microphone.append(f"--use-file-for-fake-audio-capture={heard}")
    browser = browser.browser_type.launch(executable_path=require("chromium"), args=[*BROWSER_ARGUMENTS, *microphone])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory):
    """The example application, with no model configured."""
    with serving.serve("gevent", tmp_path_factory.mktemp("gunicorn"), GUNICORN, OPENAI_API_KEY="") as server:
        yield server
        assert not serving.TROUBLE.findall(server.news())


@pytest.fixture
def tab(speaker, gunicorn):
    with speaker.new_context(viewport={"width": 1100, "height": 900}) as context:
        context.add_init_script(AS_IT_IS)
        tab = Tab(context.new_page(), gunicorn.url)
        tab.visit("/talk")
        yield tab
        assert not tab.complaints
        assert not tab.foreign


def state(tab, *names):
    expect(tab.page.locator("#call")).to_have_attribute("data-state", re.compile("|".join(names)), timeout=30_000)


@SPOKEN
def test_question_is_answered_aloud_until_somebody_interrupts(tab):
    """What the conversation keeps of the answer is what was heard of it."""
    page = tab.page
    page.get_by_role("button", name="Call").click()
    state(tab, "hearing")
    mine, answers = page.locator("#lines .you"), page.locator("#lines .answer")
    expect(mine.first.locator("p")).to_have_text(QUESTION, timeout=30_000)
    state(tab, "speaking")
    expect(answers.first).to_contain_text("You said: ")
    expect(page.locator("#output")).not_to_have_attribute("value", "0")
    expect(answers.first).to_contain_text("Interrupted here", timeout=30_000)
    heard = answers.first.locator("p").text_content()
    assert heard.startswith("You said: ")
    assert len(heard) < 160, "there was more of it"
    expect(page.locator("#silence_ms")).to_have_text(re.compile(r"\d+ ms"))
    expect(mine.nth(1)).to_contain_text("tell me", timeout=30_000)
    state(tab, "speaking")
    page.get_by_role("button", name="Hang up").click()
    state(tab, "ended")
    conversation = page.evaluate("location.hash.slice(1)")
    kept = page.evaluate("(id) => fetch(`/api/conversations/${id}`).then((answer) => answer.json())", conversation)
    assert [message["role"] for message in kept["messages"]][:2] == ["user", "assistant"]
    assert kept["messages"][1]["content"] == heard
    page.reload()
    expect(answers.first).to_have_text(re.compile(re.escape(heard)))


@SPOKEN
def test_button_is_held_and_what_is_typed_is_answered(tab):
    page = tab.page
    page.get_by_label("Hold to talk").check()
    page.get_by_role("button", name="Call").click()
    state(tab, "listening")
    page.get_by_role("button", name="Hold to talk").hover()
    page.mouse.down()
    state(tab, "hearing")
    page.mouse.up()
    state(tab, "listening")
    page.get_by_label("A message instead of speech").fill("Good evening")
    page.get_by_role("button", name="Send").click()
    state(tab, "speaking")
    expect(page.locator("#lines .you")).to_have_text(re.compile("Good evening"))
    page.get_by_role("button", name="Interrupt").click()
    state(tab, "listening")
    expect(page.locator("#lines .note")).to_have_text(re.compile("Interrupted"))


def test_microphone_that_is_refused_is_explained(context, simulation):
    tab = Tab(context.new_page(), simulation.url)
    tab.visit("/talk")
    tab.page.get_by_role("button", name="Call").click()
    expect(tab.page.get_by_role("alert")).to_contain_text(re.compile("microphone", re.IGNORECASE))
    expect(tab.page.get_by_role("button", name="Call")).to_be_enabled()
