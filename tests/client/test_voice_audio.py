"""The audio thread: rendered offline, and so to the sample."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from tests.client.conftest import connected

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture(scope="module")
def studio(browser, exchange):
    """A page that does nothing but render."""
    with browser.new_context() as context:
        yield from connected(context, exchange)


PLAYER = """(context) => {
    const node = new AudioWorkletNode(context, "llmstream-playback", {numberOfInputs: 0, outputChannelCount: [1]});
    node.connect(context.destination);
    window.reports = [];
    node.port.onmessage = ({data}) => reports.push(data);
    const push = (generation, offset, count, {last = false, value = () => 16384} = {}) => {
        const samples = Int16Array.from({length: count}, (_, n) => value(n));
        node.port.postMessage({push: {generation, offset, last, samples}});
    };
    const flush = (generation, id) => node.port.postMessage({flush: generation, id});
    const isRead = (id) => until(() => reports.some((report) => report.id === id));
    const at = (seconds, act) => context.suspend(seconds).then(async () => {
        act();
        flush(0, seconds); // drops nothing, and is answered
        await isRead(seconds);
        context.resume();
    });
    return {node, push, flush, at, isRead, begin: (rate) => node.port.postMessage({rate, session: 1})};
}"""


def rendered(page, seconds, rate, script):
    """What is heard, with the reports of the audio thread."""
    source = f"""async () => {{
        const sound = await rendered({seconds}, {rate}, async (context) => {{
            const {{push, flush, at, begin, isRead}} = ({PLAYER})(context);
            {script}
            flush(0, "begun");
            await isRead("begun");
        }});
        await moment(50);
        return [sound, reports];
    }}"""
    return page.evaluate(source)


def test_chunks_are_played_without_a_gap(studio):
    sound, reports = rendered(studio, 0.5, 24_000, "push(1, 0, 4800); push(1, 4800, 4800, {last: true});")
    start = next(n for n, sample in enumerate(sound) if sample)
    assert set(sound[start + 100 : start + 9600]) == {0.5}
    assert not any(sound[start + 9600 :])
    assert [(report["samples"], report["finished"]) for report in reports][-1] == (9600, True)
    assert reports[-1]["underruns"] == 0


def test_flush_is_silent_within_10_ms_and_counts_what_was_played(studio):
    """The cut fades for 3 ms, which count as played."""
    sound, reports = rendered(studio, 0.5, 24_000, "push(1, 0, 24000); at(0.256, () => flush(2, 7));")
    (answer,) = [report for report in reports if report.get("id") == 7]
    last = max(n for n, sample in enumerate(sound) if sample)
    assert last < (0.256 + 0.010) * 24_000
    first = next(n for n, sample in enumerate(sound) if sample)
    assert (answer["generation"], answer["samples"]) == (1, pytest.approx(last + 1 - first, abs=2))
    assert not answer["finished"]


def test_flush_keeps_what_is_newer(studio):
    script = "push(1, 0, 24000); push(2, 0, 2400, {last: true, value: () => -16384}); at(0.128, () => flush(2, 7));"
    sound, reports = rendered(studio, 0.5, 24_000, script)
    assert sum(sample == -0.5 for sample in sound) > 2200
    assert (reports[-1]["generation"], reports[-1]["samples"], reports[-1]["finished"]) == (2, 2400, True)


def test_generation_that_follows_another_leaves_its_count(studio):
    script = "push(1, 0, 2400, {last: true}); push(2, 0, 2400, {last: true});"
    _, reports = rendered(studio, 0.4, 24_000, script)
    assert (1, 2400) in [(report["generation"], report["samples"]) for report in reports]


def test_queue_that_ran_dry_is_filled_a_little_before_it_goes_on(studio):
    script = """push(1, 0, 960);
        at(0.128, () => push(1, 960, 960));
        at(0.192, () => push(1, 1920, 960));
        at(0.448, () => push(1, 2880, 480));"""
    sound, reports = rendered(studio, 0.75, 24_000, script)
    assert reports[-1]["underruns"] == 3
    assert reports[-1]["samples"] == 3360
    loud = [n / 24_000 for n, sample in enumerate(sound) if sample]
    gaps = [(a, b) for a, b in pairwise(loud) if b - a > 0.02]
    (_, second), (_, third) = gaps
    assert second == pytest.approx(0.192, abs=0.012), "when 80 ms were there"
    assert third == pytest.approx(0.448 + 0.120, abs=0.012), "that was all, so it is not waited for any longer"


def test_last_chunk_waits_for_nothing(studio):
    script = "push(1, 0, 960); at(0.128, () => push(1, 960, 480, {last: true}));"
    sound, _ = rendered(studio, 0.3, 24_000, script)
    assert max(n for n, sample in enumerate(sound) if sample) / 24_000 == pytest.approx(0.148, abs=0.012)


def test_queue_is_bounded(studio):
    """A server that keeps to the protocol is never so far ahead."""
    script = "for (let n = 0; n < 100; n++) push(1, n * 24000, 24000);"
    _, reports = rendered(studio, 0.1, 24_000, script)
    assert max(report["queued"] for report in reports) <= 31


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_speech_keeps_its_pitch_and_its_level_at_another_rate(studio, rate):
    script = """begin(24000);
        push(1, 0, 9600, {last: true, value: (n) => Math.round(16384 * Math.sin(n * 2 * Math.PI * 1000 / 24000))});"""
    sound, reports = rendered(studio, 0.5, rate, script)
    assert reports[-1]["samples"] == 9600, "counted as the server counts"
    middle = sound[round(0.1 * rate) : round(0.3 * rate)]
    assert purity(middle, 1000, rate) == pytest.approx(0.5, abs=0.005)
    assert residue(middle, 1000, rate) < 0.002


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_capture_is_resampled_to_what_the_server_hears(studio, rate):
    heard = captured(studio, rate, 1000)
    assert len(heard) == 20 * 320
    middle = heard[1600:4800]
    assert purity(middle, 1000, 16_000) == pytest.approx(0.5, abs=0.005)
    assert residue(middle, 1000, 16_000) < 0.002


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_what_the_server_can_not_hear_is_no_noise(studio, rate):
    """11 kHz would come down as 5 kHz."""
    assert max(map(abs, captured(studio, rate, 11_000)[1600:4800])) < 0.01


def captured(page, rate, hertz):
    """The samples, from -1 to 1, that 400 ms of a tone are sent as."""
    frames = page.evaluate(
        """async ([rate, hertz]) => {
            const frames = [];
            await rendered(0.42, rate, async (context) => {
                const processorOptions = {rate: 16000, header: 8};
                const node = new AudioWorkletNode(context, "llmstream-capture", {numberOfOutputs: 0, processorOptions});
                node.port.onmessage = ({data: {frame}}) => frames.push(...new Int16Array(frame, 8));
                const tone = new OscillatorNode(context, {frequency: hertz});
                const half = new GainNode(context, {gain: 0.5});
                tone.connect(half).connect(node);
                half.connect(context.destination);
                tone.start();
            });
            await moment(50);
            return frames;
        }""",
        [rate, hertz],
    )
    return [sample / 32_767 for sample in frames][: 20 * 320]


def parts(samples, hertz, rate):
    turn = 2 * math.pi * hertz / rate
    sine = sum(sample * math.sin(turn * n) for n, sample in enumerate(samples)) * 2 / len(samples)
    cosine = sum(sample * math.cos(turn * n) for n, sample in enumerate(samples)) * 2 / len(samples)
    return sine, cosine


def purity(samples, hertz, rate):
    """The amplitude of a tone in it."""
    return math.hypot(*parts(samples, hertz, rate))


def residue(samples, hertz, rate):
    """The root mean square of what is not that tone."""
    sine, cosine = parts(samples, hertz, rate)
    turn = 2 * math.pi * hertz / rate
    rest = (s - sine * math.sin(turn * n) - cosine * math.cos(turn * n) for n, s in enumerate(samples))
    return math.sqrt(sum(sample * sample for sample in rest) / len(samples))
