"""Why there is no call: in a sentence for a person."""

from __future__ import annotations

import pytest

from tests.client.test_voice import begun, until
from tests.client.voice_server import problem, response

pytestmark = pytest.mark.needs("chromium")


def failure(phone, options="{}"):
    """What `start()` rejects with."""
    error = phone.evaluate(f"(window.made = call({options})).start().then(() => null, told)")
    assert phone.evaluate("[made.state, made.all('error')]") == ["failed", [error]]
    return error


def test_refused_handshake_is_explained_by_the_problem(phone, voice):
    """A browser sees nothing of a refused handshake; a plain GET is answered with the reason."""
    for status, detail in [(401, "Sign in first."), (404, "No such call."), (429, "Two calls at a time.")]:
        voice.refusals.append(problem(status, detail))
        error = failure(phone)
        assert (error["name"], error["status"], error["message"]) == ("ProblemError", status, detail)
    assert [asked.headers["Accept"] for asked in voice.asked] == ["application/problem+json"] * 3


def test_server_that_is_busy_for_a_moment_is_asked_again(phone, voice):
    voice.refusals.extend([problem(503, "Later.", retry_after=0.1)] * 2)
    begun(phone, voice)


def test_server_that_stays_busy(phone, voice):
    voice.refusals.append(problem(503, "Come back in an hour.", retry_after=3600))
    assert failure(phone)["message"] == "Come back in an hour."
    assert len(voice.asked) == 1


def test_proxy_that_lets_no_websocket_through(phone, voice):
    """The server would let the page in: it answers 426 to the plain question."""
    voice.refusals.extend([response(426)] * 4)
    error = failure(phone)
    assert error["name"] == "ConnectionLostError"
    assert "proxy" in error["message"]


def test_address_where_no_call_is(phone, voice):
    voice.refusals.append(response(200))
    assert failure(phone)["message"] == "There is no voice endpoint at this address."


FAILURES = [
    (1008, "", "The call broke off: this page sent more than the server allows."),
    (4400, "a call begins with start or resume", "A call begins with start or resume."),
    (4404, "", "There is no such conversation any more."),
    (4429, "", "The call broke off: a limit has been reached."),
]


def test_final_close_fails_the_call(phone, voice):
    for code, reason, message in FAILURES:
        begun(phone, voice).close(code, reason)
        until(phone, "made.state === 'failed'")
        (error,) = phone.evaluate("made.all('error')")
        assert (error["name"], error["code"], error["message"]) == ("CallEndedError", code, message)


def test_problem_with_the_first_message_is_told_as_a_problem(phone, voice):
    phone.evaluate("void (window.made = call({temperature: 99}))")
    call = voice.call()
    call.wait_for("start")
    call.say("problem", seq=0, problem={"type": "urn:x", "status": 422, "detail": "That is too hot."})
    call.close(4400, "That is too hot.")
    until(phone, "made.state === 'failed'")
    (error,) = phone.evaluate("made.all('error')")
    assert (error["name"], error["status"], error["message"]) == ("ProblemError", 422, "That is too hot.")


ENDS = [
    (1000, "The call has ended."),
    (4408, "The call has ended, for nothing was said for a long time."),
    (4409, "The call goes on in another window."),
    (4410, "The call has lasted as long as a call may."),
]


def test_end_that_is_no_failure(phone, voice):
    for code, reason in ENDS:
        begun(phone, voice).close(code)
        until(phone, "made.state === 'ended'")
        assert phone.evaluate("[made.all('end'), made.all('error')]") == [[{"code": code, "reason": reason}], []]


NO_MICROPHONE = [
    ("NotAllowedError", "Permission denied", "denied", "Allow it"),
    ("NotAllowedError", "Permission dismissed", "dismissed", "Try again"),
    ("NotAllowedError", "Permission denied by system", "system", "privacy settings"),
    ("NotFoundError", "Requested device not found", "missing", "Plug one in"),
    ("NotReadableError", "Could not start audio source", "busy", "another program"),
]


def test_microphone_that_can_not_be_had(phone, voice):
    for name, said, kind, advice in NO_MICROPHONE:
        phone.evaluate(
            """([name, said]) => {
                navigator.mediaDevices.getUserMedia = async () => { throw new DOMException(said, name); };
            }""",
            [name, said],
        )
        error = failure(phone)
        assert (error["name"], error["kind"]) == ("DeviceError", kind)
        assert advice in error["message"]
    assert voice.calls == [], "nobody was called"


def test_browser_that_refuses_the_microphone(deaf_phone, voice):
    assert failure(deaf_phone)["kind"] in ("denied", "missing")


def test_page_that_came_without_https(phone, voice):
    phone.evaluate("void Object.defineProperty(window, 'isSecureContext', {value: false})")
    error = failure(phone)
    assert error["kind"] == "insecure"
    assert "https" in error["message"]


def test_microphone_that_is_unplugged_is_replaced(phone, voice):
    phone.evaluate("""() => {
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wanted) => {
            if (window.none) throw new DOMException("none", "NotFoundError");
            return (window.stream = await ask(wanted));
        };
        window.unplug = () => {
            const [track] = stream.getAudioTracks();
            track.stop();
            track.dispatchEvent(new Event("ended"));
        };
    }""")
    call = begun(phone, voice)
    phone.evaluate("unplug()")
    count = len(call.frames)
    call.wait_for_frames(count + 20)
    phone.evaluate("void (window.none = true)")
    phone.evaluate("unplug()")
    until(phone, "made.all('problem').length")
    assert phone.evaluate("made.all('problem')")[0]["kind"] == "unplugged"
    phone.evaluate("void (window.none = false)")
    phone.evaluate("void navigator.mediaDevices.dispatchEvent(new Event('devicechange'))")
    count = len(call.frames)
    call.wait_for_frames(count + 20)


def test_devices_have_names(phone, voice):
    begun(phone, voice)
    devices = phone.evaluate("llm.audioDevices()")
    assert devices["microphones"]
    assert all(device["id"] and device["label"] for device in devices["microphones"])


def test_another_microphone(phone, voice):
    call = begun(phone, voice)
    phone.evaluate("llm.audioDevices().then(({microphones}) => made.useMicrophone(microphones.at(-1).id))")
    count = len(call.frames)
    call.wait_for_frames(count + 5)


def test_sound_that_the_browser_holds_back_waits_for_a_click(phone, voice):
    """As without a gesture: the context stays suspended until there is one."""
    phone.evaluate("""() => {
        const resume = AudioContext.prototype.resume;
        const Native = AudioContext;
        let clicked = false;
        document.addEventListener("pointerdown", () => (clicked = true), true);
        window.AudioContext = class extends Native {
            constructor(options) { super(options); super.suspend(); }
            resume() { return clicked ? super.resume() : new Promise(() => {}); }
        };
    }""")
    phone.evaluate("void (window.made = call())")
    until(phone, "made.all('problem').length")
    assert phone.evaluate("made.all('problem')")[0]["kind"] == "suspended"
    phone.mouse.click(5, 5)
    voice.call().ready().wait_for_frames(3)
