"""Forms: fields become the input, files go to their folder, and whatever is wrong leaves no file behind."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from flask import Flask, request
from hypothesis import assume, given
from hypothesis import strategies as st
from marshmallow import Schema, fields

from flask_llmstream.errors import (
    ContentTooLarge,
    FileRefused,
    InvalidInput,
    LLMStreamError,
    NotJSON,
    OriginRefused,
    RequestRefused,
)
from flask_llmstream.forms import CHUNK, MOST_FIELDS, MOST_FILES, clean_name, read_form
from flask_llmstream.requests import fingerprint, request_input
from flask_llmstream.schemas import load
from flask_llmstream.uploads import File, Folder

MAX_TEXT = 1000
MAX_FILE = 300_000


class Analysis(Schema):
    question = fields.String()
    pages = fields.Integer()
    options = fields.Dict()
    since = fields.Date()
    file = File(types=("application/pdf", "text/plain"))
    more = fields.List(File(types=("text/plain",), max_size=10))


class Roomy(Analysis):
    more = fields.List(File(types=("text/plain",)))


class Question(Schema):
    question = fields.String()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "uploads", MAX_FILE)


def files(folder):
    return sorted(path.read_bytes() for path in folder.path.iterdir()) if folder.path.is_dir() else []


def send(folder, data, *, schema=Analysis, **more):
    """What a view reads out of a form."""
    more.setdefault("content_type", "multipart/form-data")
    with Flask(__name__).test_request_context("/", method="POST", data=data, **more):
        return read_form(request, folder, folder.bind(schema()), max_text=MAX_TEXT)


def text(content=b"Hello", name="a.txt"):
    return io.BytesIO(content), name


def part(disposition, content=b"", *, boundary=b"frontier"):
    return b"--" + boundary + b"\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"


def send_raw(folder, body, boundary="frontier", **more):
    return send(folder, body, content_type=f"multipart/form-data; boundary={boundary}", **more)


def send_stream(folder, stream, **environ):
    """What a server hands over, which reads a form from its line."""
    content_type = "multipart/form-data; boundary=frontier"
    return send(folder, None, environ_overrides={"wsgi.input": stream, "CONTENT_TYPE": content_type, **environ})


FILE = b'form-data; name="file"; filename="a.txt"'
END = b"--frontier--\r\n"


def test_fields_and_files_are_one_input(folder):
    data = send(
        folder,
        {"question": "5", "pages": "5", "options": '{"a": [1]}', "since": "2026-01-31", "file": text()},
    )
    assert {name: value for name, value in data.items() if name != "file"} == {
        "question": "5",
        "pages": 5,
        "options": {"a": [1]},
        "since": "2026-01-31",
    }
    loaded = load(folder.bind(Analysis()), data)
    assert loaded["file"].text() == "Hello"
    assert loaded["since"].year == 2026


def test_several_files_are_a_list(folder):
    one = send(folder, {"more": text()})
    assert [reference.file.name for reference in one["more"]] == ["a.txt"]
    data = send(folder, {"more": [text(b"1", "1.txt"), text(b"2", "2.txt")]})
    assert [upload.text() for upload in load(folder.bind(Analysis()), data)["more"]] == ["1", "2"]


def test_what_no_field_can_read_is_left_to_the_schema(folder):
    data = send(folder, {"pages": "many", "options": "[" * 900, "unknown": "5"})
    assert data == {"pages": "many", "options": "[" * 900, "unknown": "5"}
    with pytest.raises(InvalidInput) as refused:
        load(folder.bind(Analysis()), data)
    assert sorted(refused.value.extensions["errors"]) == ["options", "pages", "unknown"]


@pytest.mark.parametrize("content", ["", "a", '{"file": {"id": "' + "a" * 32 + '"}}'])
@pytest.mark.parametrize("field", ["file", "more"])
def test_a_field_of_text_is_no_file(folder, field, content):
    with pytest.raises(InvalidInput, match=f"{field}: Send a file"):
        send(folder, {field: content})


def test_a_part_without_a_name_is_for_the_schema_to_refuse(folder):
    assert send_raw(folder, part(b"form-data", b"a") + END) == {"": "a"}


def test_no_file_chosen_is_no_file(folder):
    """As browsers send a form in which nothing was chosen."""
    body = part(b'form-data; name="file"; filename=""') + part(b'form-data; name="question"', b"a") + END
    assert send_raw(folder, body) == {"question": "a"}
    assert files(folder) == []


PARTS = (
    part(FILE, b"a\r\n-\r\n--front\r\nb")
    + part(b'form-data; name="question"', b"a\r\nb")
    + part(b'form-data; name="more"; filename="b.txt"\r\nContent-Type: text/plain', b"\nx\r")
    + END
)


@pytest.mark.parametrize("cut", range(1, len(PARTS)))
def test_a_form_is_what_was_sent_wherever_it_is_cut(folder, cut):
    """It is read in pieces, and any byte may be the first of one."""
    before = part(b'form-data; name="more"; filename="a.txt"', b"")
    padding = b"a" * (CHUNK - len(before) - cut)
    padded = before[:-2] + padding + b"\r\n" + PARTS
    assert len(before) + len(padding) + cut == CHUNK
    data = send_raw(folder, padded, schema=Roomy)
    assert files(folder) == sorted([padding, b"a\r\n-\r\n--front\r\nb", b"\nx\r"])
    assert data["question"] == "a\r\nb"


def test_a_form_may_come_byte_by_byte(folder):
    class Dribble(io.BytesIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:1])

    body = part(FILE, b"a\r\n-\r\n--front") + part(b'form-data; name="question"', b"a") + END
    data = send_stream(folder, Dribble(body), CONTENT_LENGTH=str(len(body)))
    assert data["question"] == "a"
    assert files(folder) == [b"a\r\n-\r\n--front"]


@given(st.lists(st.sampled_from([b"a", b"\r\n", b"\n", b"-", b"--frontier", b"\xc3\xa9"]), max_size=30))
def test_a_file_is_what_was_sent_however_much_it_looks_like_a_form(tmp_path_factory, pieces):
    content = b"a" + b"".join(pieces) + b"a"
    assume(b"\n--frontier" not in content)
    folder = Folder(tmp_path_factory.mktemp("uploads"), MAX_FILE)
    send_raw(folder, part(FILE, content) + END)
    assert files(folder) == [content]


# What is refused. There is always a good file before what is wrong.

GOOD = part(b'form-data; name="file"; filename="good.txt"', b"good")


@pytest.mark.parametrize(
    ("body", "error", "sentence"),
    [
        (GOOD + part(FILE, b"b") + END, InvalidInput, "file: One file too many"),
        (GOOD + part(b'form-data; name="file"', b"b") + END, InvalidInput, "file: Send a file"),
        (
            GOOD + part(b'form-data; name="question"', b"a") * 2 + END,
            InvalidInput,
            "question: Sent more than once",
        ),
        (GOOD + part(b'form-data; name="other"; filename="a"', b"b") + END, InvalidInput, "other: Unknown field"),
        (GOOD + part(b'form-data; filename="a"', b"b") + END, InvalidInput, "Unknown field"),
        (
            GOOD + part(b'form-data; name="pages"; filename="a"', b"b") + END,
            InvalidInput,
            "pages: Not a field that takes a file",
        ),
        (GOOD + part(b'form-data; name="more"; filename="a"') + END, InvalidInput, "more: The file is empty"),
        (
            GOOD + part(b'form-data; name="more"; filename="a"', b"12345678901") + END,
            ContentTooLarge,
            "a is too large: a file may have 10 bytes here",
        ),
        (
            GOOD + part(b'form-data; name="more"; filename="a.txt"', b"PK\x03\x04") + END,
            FileRefused,
            "a.txt is of type ZIP, by what is in it. Taken here: text",
        ),
        (GOOD + part(b'form-data; name="question"', b"a" * 1001) + END, ContentTooLarge, "longer than any valid"),
        (GOOD + part(b'form-data; name="question"', b"\xff") + END, RequestRefused, "not a valid form"),
        (GOOD + part(b'form-data; name="question"', b"a"), RequestRefused, "breaks off"),
        (GOOD + FILE, RequestRefused, "breaks off"),
        (GOOD + b"--frontier\r\nContent-Type: a\r\n\r\na\r\n" + END, RequestRefused, "not a valid form"),
        (GOOD + b"--frontier\r\nX: " + b"a" * (5 * CHUNK) + b"\r\n\r\n\r\n" + END, RequestRefused, "not a valid form"),
        (b"no form" * 10, RequestRefused, "not a valid form"),
        (b"\r\n", RequestRefused, "not a valid form"),
    ],
)
def test_whatever_is_wrong_leaves_no_file(folder, body, error, sentence):
    with pytest.raises(error, match=sentence):
        send_raw(folder, body)
    assert files(folder) == []


def test_there_are_so_many_files_and_no_more(folder):
    for count in (MOST_FILES, MOST_FILES + 1):
        sent = {"more": [text(b"1") for _ in range(count)]}
        if count == MOST_FILES:
            assert len(send(folder, sent)["more"]) == count
        else:
            with pytest.raises(InvalidInput, match="more: One file too many"):
                send(folder, sent)
    assert len(files(folder)) == MOST_FILES


def test_there_are_so_many_fields_and_no_more(folder):
    assert len(send(folder, {f"f{at}": "a" for at in range(MOST_FIELDS)})) == MOST_FIELDS
    with pytest.raises(InvalidInput, match="One field too many"):
        send(folder, {f"f{at}": "a" for at in range(MOST_FIELDS + 1)})


@pytest.mark.parametrize("boundary", ["", "ä"])
def test_a_form_has_a_boundary(folder, boundary):
    with pytest.raises(RequestRefused, match="not a valid form"):
        send_raw(folder, b"--\r\n", boundary)


def test_a_request_that_says_it_is_too_large_is_not_read(folder):
    class Unread(io.RawIOBase):
        def readinto(self, buffer):
            raise AssertionError("it was read")

    with pytest.raises(ContentTooLarge, match=r"a file may have 293 KiB here"):
        send_stream(folder, Unread(), CONTENT_LENGTH=str(100 * 2**20))


def test_a_request_of_unknown_length_is_read_up_to_its_limit(folder):
    body = part(b'form-data; name="more"; filename="a.txt"', b"a" * 10)
    body = body * MOST_FILES + part(FILE, b"a" * MAX_FILE) + END + b"\n" * 2 * CHUNK
    with pytest.raises(ContentTooLarge, match="The request has more than"):
        send_stream(folder, io.BytesIO(body), **{"wsgi.input_terminated": True, "CONTENT_LENGTH": ""})
    assert files(folder) == []


def test_a_smaller_limit_of_the_application_s_holds(folder):
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 100
    with (
        app.test_request_context("/", method="POST", data={"file": text(b"a" * 200)}),
        pytest.raises(ContentTooLarge, match="a file may have 100 bytes here"),
    ):
        read_form(request, folder, folder.bind(Analysis()), max_text=MAX_TEXT)


def test_a_form_that_has_been_read_already_is_read_too(folder):
    """As by Flask-WTF's CSRFProtect, which looks for its token in the form."""
    schema = folder.bind(Analysis())
    sent = {"question": "5", "file": text(b"a" * 200_000), "more": [text(b"1"), text(b"2")]}
    with Flask(__name__).test_request_context("/", method="POST", data=sent):
        assert request.form["question"] == "5"
        data = read_form(request, folder, schema, max_text=MAX_TEXT)
    loaded = load(schema, data)
    assert (loaded["question"], loaded["file"].size, len(loaded["more"])) == ("5", 200_000, 2)


# The name of a file


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Users\\me\\report.pdf", "report.pdf"),
        ("..\\..\\report.pdf", "report.pdf"),
        ("..", "file"),
        (".", "file"),
        ("folder/", "file"),
        ("", "file"),
        (" \t", "file"),
        ("a\0b\r\nc\x7f.txt", "abc.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("Übersicht 2026 · Größe.pdf", "Übersicht 2026 · Größe.pdf"),
        (".profile", ".profile"),
        ("a" * 300 + ".pdf", "a" * 251 + ".pdf"),
        ("a." + "b" * 300, "." + "b" * 254),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_name(sent, kept):
    assert clean_name(sent) == kept


def test_a_path_in_a_name_leads_nowhere(folder, tmp_path):
    data = send(folder, {"file": text(name="../../escaped.txt")})
    assert data["file"].file.name == "escaped.txt"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [data["file"].file.id]


# The choice between a form and JSON


def record(folder):
    settings = SimpleNamespace(max_input=1000, allowed_origins=())
    return SimpleNamespace(settings=settings, uploads=folder)


def choose(folder, schema, **sent):
    with Flask(__name__).test_request_context("/", method="POST", **sent):
        return request_input(request, record(folder), folder.bind(schema()))


def test_a_schema_with_files_takes_forms_and_json(folder):
    assert choose(folder, Analysis, data={"file": text()})["file"].file.size == 5
    assert choose(folder, Analysis, json={"question": "a"}) == {"question": "a"}


@pytest.mark.parametrize("sent", [{"data": b"a", "content_type": "text/plain"}, {"data": {"question": "a"}}])
def test_what_is_neither_is_told_what_to_send(folder, sent):
    with pytest.raises(NotJSON, match="multipart/form-data"):
        choose(folder, Analysis, **sent)


def test_a_schema_without_files_takes_json_alone(folder):
    with pytest.raises(NotJSON, match="application/json"):
        choose(folder, Question, data={"question": "a", "file": text()})
    assert choose(folder, Question, json={"question": "a"}) == {"question": "a"}


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
)
def test_no_page_of_another_origin_sends_a_form(folder, headers):
    """No browser asks first whether it may, as it does for JSON."""
    with pytest.raises(OriginRefused):
        choose(folder, Analysis, data={"file": text()}, headers=headers)
    assert files(folder) == []


def test_the_same_form_sent_again_is_the_same_request(folder):
    first, again, other = (
        fingerprint("analyze", {}, send(folder, {"file": text(content)})) for content in (b"a", b"a", b"b")
    )
    assert first == again != other


def test_every_refusal_is_a_problem_of_ours(folder):
    with pytest.raises(LLMStreamError) as refused:
        send(folder, {"file": text(b"\x7fELF\0")})
    assert refused.value.problem()["status"] == 415
