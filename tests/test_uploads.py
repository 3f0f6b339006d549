"""Files that wait for their run: what stands for them, who may, and how long they are kept."""

from __future__ import annotations

import errno
import os
import stat
import time
from hashlib import sha256

import msgspec
import pytest
from marshmallow import Schema, fields

from flask_llmstream.errors import ConfigurationError, ContentTooLarge, FileRefused, InvalidInput, StoreUnavailable
from flask_llmstream.schemas import load
from flask_llmstream.uploads import File, Folder, Reference, Upload, file_fields, from_record, without_ids


class Analysis(Schema):
    title = fields.String()
    document = File(types=("application/pdf", "text/plain", "text/markdown"), data_key="file")
    pages = fields.List(File(types=("image/png",)))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "instance" / "uploads", 1000)


@pytest.fixture
def schema(folder):
    return folder.bind(Analysis())


def receive(folder, schema, content=b"Hello", name="a.txt", field="file"):
    taker = file_fields(schema)[field]
    chunks = [content[at : at + 100] for at in range(0, len(content), 100)]
    return folder.receive(iter(chunks), name, taker.inner if isinstance(taker, fields.List) else taker)


def files(folder):
    return sorted(path.name for path in folder.path.iterdir()) if folder.path.is_dir() else []


def as_another_process_has_it(data):
    return msgspec.json.decode(msgspec.json.encode(data))


# A file


def test_a_file_becomes_an_upload(folder, schema):
    reference = receive(folder, schema, "\ufeffGrüße".encode(), "a.md")
    upload = load(schema, {"title": "A", "file": reference})["document"]
    assert isinstance(upload, Upload)
    assert (upload.name, upload.type, upload.size) == ("a.md", "text/markdown", 10)
    assert upload.digest == sha256("\ufeffGrüße".encode()).hexdigest()
    assert upload.text() == "Grüße"
    with upload.open() as file:
        assert file.read() == upload.path.read_bytes() == "\ufeffGrüße".encode()
    assert str(folder.path) not in repr(upload)


def test_a_text_in_utf_16_is_read_too(folder, schema):
    reference = receive(folder, schema, "Grüße".encode("utf-16"))
    assert load(schema, {"file": reference})["document"].text() == "Grüße"


def test_a_picture_is_no_text(folder, schema):
    reference = receive(folder, schema, b"\x89PNG\r\n\x1a\n", "a.png", "pages")
    with pytest.raises(ValueError):
        load(schema, {"pages": [reference]})["pages"][0].text()


def test_only_its_user_may_read_it(folder, schema):
    umask = os.umask(0)
    try:
        receive(folder, schema)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()] == [0o600]


def test_the_folder_is_made_when_it_is_first_used(folder, schema):
    assert not folder.path.exists()
    receive(folder, schema)
    assert folder.path.is_dir()


def test_a_file_that_is_too_large_is_removed(folder, schema):
    assert receive(folder, schema, b"a" * 1000).file.size == 1000
    before = files(folder)
    with pytest.raises(ContentTooLarge, match=r"a\.txt is too large: a file may have 1000 bytes here\."):
        receive(folder, schema, b"a" * 1001)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04", "a.pdf is of type ZIP, by what is in it. Taken here: PDF, text, Markdown."),
        (b"\x7fELF\0", "a.pdf is of no type that is known here. Taken here: PDF, text, Markdown."),
    ],
)
def test_a_file_of_another_type_is_removed(folder, schema, content, sentence):
    with pytest.raises(FileRefused) as refused:
        receive(folder, schema, content, "a.pdf")
    assert refused.value.detail == sentence
    assert refused.value.problem()["accepts"] == ["application/pdf", "text/plain", "text/markdown"]
    assert refused.value.problem()["type"].endswith(":file-refused")
    assert files(folder) == []


def test_any_text_is_plain_text_where_that_is_taken(folder, schema):
    assert receive(folder, schema, b"a,b", "a.csv").file.type == "text/plain"
    assert receive(folder, schema, b"a,b", "a.md").file.type == "text/markdown"


@pytest.mark.parametrize("broken", [RuntimeError, GeneratorExit])
def test_a_file_that_breaks_off_is_removed(folder, schema, broken):
    def chunks():
        yield b"Hello"
        assert len(files(folder)) == 1
        raise broken

    with pytest.raises(broken):
        folder.receive(chunks(), "a.txt", file_fields(schema)["file"])
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_is_the_servers_fault(tmp_path):
    (tmp_path / "file").touch()
    folder = Folder(tmp_path / "file" / "uploads", 1000)
    with pytest.raises(StoreUnavailable, match="cannot keep files") as refused:
        receive(folder, folder.bind(Analysis()))
    assert "LLMSTREAM_UPLOADS" in refused.value.diagnosis
    assert str(tmp_path) not in str(refused.value.problem())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk to write to")
def test_a_full_disk_is_the_servers_fault(folder, schema, monkeypatch):
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode: opened("/dev/full", os.O_WRONLY))
    with pytest.raises(StoreUnavailable) as refused:
        receive(folder, schema)
    assert os.strerror(errno.ENOSPC) in refused.value.diagnosis


# What stands for it


def test_a_run_s_record_has_references_that_another_process_reads(folder, schema):
    data = {
        "title": "A",
        "file": receive(folder, schema),
        "pages": [receive(folder, schema, b"\x89PNG\r\n\x1a\n", "p", "pages")],
    }
    recorded = as_another_process_has_it(data)
    assert recorded["file"] == {"file": msgspec.to_builtins(data["file"].file)}
    assert sorted(recorded["file"]["file"]) == ["digest", "id", "name", "size", "type"]
    revived = load(schema, from_record(schema, recorded))
    assert revived == load(schema, data)
    assert revived["document"].text() == "Hello"


def test_a_run_that_has_ended_still_has_its_input(folder, schema):
    recorded = as_another_process_has_it({"file": receive(folder, schema)})
    folder.discard(recorded)
    upload = load(schema, from_record(schema, recorded))["document"]
    assert upload.name == "a.txt"
    with pytest.raises(FileNotFoundError):
        upload.text()


def test_a_client_cannot_write_a_reference(folder, schema):
    """Even if it knew what to write."""
    recorded = as_another_process_has_it({"file": receive(folder, schema)})
    with pytest.raises(InvalidInput, match="file: Send a file, as a part of multipart/form-data"):
        load(schema, recorded)
    with pytest.raises(InvalidInput, match="pages"):
        load(schema, {"pages": [recorded["file"]]})


@pytest.mark.parametrize("value", ["a.txt", 1, None, {}, {"file": "a"}, {"file": {"id": "a"}}])
def test_anything_else_in_a_record_is_no_file(schema, value):
    with pytest.raises(InvalidInput):
        load(schema, from_record(schema, {"file": value}))


@pytest.mark.parametrize("file_id", ["../../etc/passwd", "a" * 31 + "/", "a" * 32 + "\n", "", "a" * 33, "." * 32])
def test_no_id_leads_out_of_the_folder(folder, schema, file_id):
    outside = folder.path / file_id
    recorded = as_another_process_has_it({"file": receive(folder, schema)})
    recorded["file"]["file"]["id"] = file_id
    before = files(folder)
    with pytest.raises(InvalidInput):
        load(schema, from_record(schema, recorded))
    folder.discard(recorded)
    assert files(folder) == before, outside


def test_an_application_hands_a_file_on(folder, schema):
    upload = load(schema, {"file": receive(folder, schema)})["document"]

    class Narrow(Schema):
        file = File(types=["application/pdf"])

    class Small(Schema):
        file = File(types=["text/plain"], max_size=4)

    assert load(schema, {"file": upload})["document"] is upload
    with pytest.raises(InvalidInput, match="Not a file of a type that is taken here"):
        load(folder.bind(Narrow()), {"file": upload})
    with pytest.raises(InvalidInput, match="Larger than a file may be here"):
        load(folder.bind(Small()), {"file": upload})


def test_the_same_file_sent_again_is_the_same(folder, schema):
    first, again, other = (receive(folder, schema, content) for content in (b"Hello", b"Hello", b"Goodbye"))
    assert without_ids({"file": first, "pages": [first]}) == without_ids({"file": again, "pages": [again]})
    assert without_ids({"file": first}) != without_ids({"file": other})
    assert without_ids([first]) == [first]
    by_hand = as_another_process_has_it({"x": first}), as_another_process_has_it({"x": again})
    assert without_ids(by_hand[0]) != without_ids(by_hand[1])


# The field


def test_which_fields_take_files(schema):
    assert list(file_fields(schema)) == ["file", "pages"]
    assert isinstance(file_fields(schema)["file"], File)


def test_a_required_file_is_missed(folder):
    class Strict(Schema):
        file = File(required=True, types=["text/plain"], error_messages={"required": "Choose a file."})

    with pytest.raises(InvalidInput, match="file: Choose a file"):
        load(folder.bind(Strict()), {})


def test_openapi_calls_it_binary():
    described = File(types=["text/plain"], metadata={"description": "A text."}).metadata
    assert described == {"type": "string", "format": "binary", "description": "A text."}


@pytest.mark.parametrize("types", [[], "text/plain", ["application/x-msdownload"]])
def test_types_that_cannot_be_told_apart_are_refused(types):
    with pytest.raises(ConfigurationError, match="takes a list of any of application/pdf"):
        File(types=types)


def test_a_schema_that_belongs_to_no_application_is_told_of(folder, schema):
    with pytest.raises(ConfigurationError, match="stands at the top"):
        load(Analysis(), {"file": receive(folder, schema)})


def test_two_applications_keep_their_files_apart(tmp_path):
    folders = Folder(tmp_path / "one", 10), Folder(tmp_path / "two", 20)
    schemas = [folder.bind(Analysis()) for folder in folders]
    assert [file_fields(schema)["file"].limit for schema in schemas] == [10, 20]


# How long it is kept


def test_what_a_run_had_is_removed(folder, schema):
    kept = receive(folder, schema)
    data = {"title": "A", "file": receive(folder, schema), "more": [1, {"file": 2}], "pages": [receive(folder, schema)]}
    folder.discard(data)
    assert files(folder) == [kept.file.id]
    folder.discard(data)
    folder.discard(as_another_process_has_it({"file": kept}))
    folder.discard(None)
    folder.discard("text")
    assert files(folder) == []


def test_what_a_killed_process_has_left_is_swept(folder, schema):
    old, new = (receive(folder, schema).file.id for _ in range(2))
    (folder.path / "notes.txt").write_text("not ours")
    long_ago = time.time() - 1000
    for name in (old, "notes.txt"):
        os.utime(folder.path / name, (long_ago, long_ago))
    assert folder.sweep(1001) == 0
    assert folder.sweep(999) == 1
    assert files(folder) == sorted([new, "notes.txt"])


def test_there_is_nothing_to_sweep_before_the_first_file(folder):
    assert folder.sweep(0) == 0
    assert not folder.path.exists()


def test_a_reference_is_no_other_json(folder, schema):
    reference = receive(folder, schema)
    assert isinstance(reference, Reference)
    assert reference != receive(folder, schema)
