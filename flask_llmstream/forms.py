"""Reads a form, ``multipart/form-data``: fields into the input, files into their folder as they come."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from types import NoneType
from typing import Any

import msgspec
from flask import Request
from marshmallow import Schema, fields
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, MultipartDecoder, NeedData
from werkzeug.sansio.multipart import Field as FieldPart
from werkzeug.sansio.multipart import File as FilePart

from .errors import ContentTooLarge, InvalidInput, RequestRefused
from .uploads import MESSAGES, Folder, amount, file_fields, file_of

CHUNK = 65536
"""Bytes that are read at a time."""
MOST_FILES = 20
"""Files that one field takes, where it is a list."""
MOST_FIELDS = 100
LONGEST_NAME = 255
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of what cannot be seen, such as control characters, and marks that turn the text around."""


def read_form(request: Request, folder: Folder, schema: Schema, *, max_text: int) -> dict[str, Any]:
    """The input that a form carries. Its files are in the folder by then; on any error none of them is.

    :param max_text: the most bytes that its other fields may have together.
    :raises ContentTooLarge: a file has more than it may, or the form.
    :raises FileRefused: a file is of another type than its field takes.
    :raises InvalidInput: there is a part too many, or an empty file.
    :raises RequestRefused: it is no form, or breaks off.
    :raises StoreUnavailable: the disk does not take it.
    """
    form = _Form(folder, schema, max_text)
    form.limit(request)
    with ExitStack() as undo:
        undo.callback(folder.discard, form.data)
        try:
            for name, filename, chunks in _parts(request):
                if filename is None:
                    form.take_text(name, chunks)
                else:
                    form.take_file(name, filename, chunks)
        except RequestEntityTooLarge:
            raise ContentTooLarge(f"The request has more than {amount(request.max_content_length or 0)}.") from None
        except (ClientDisconnected, ValueError):
            raise RequestRefused("The request's body is not a valid form, or breaks off.") from None
        undo.pop_all()
    return form.data


class _Form:
    """The input that a form comes to, part by part.

    :param max_text: as above.
    """

    def __init__(self, folder: Folder, schema: Schema, max_text: int) -> None:
        self.data: dict[str, Any] = {}
        self._folder = folder
        self._fields = {listed.data_key or name: listed for name, listed in schema.load_fields.items()}
        self._files = file_fields(schema)
        self._max_text = max_text
        self._text = 0

    def limit(self, request: Request) -> None:
        """Have the request refused beyond what all of its fields take, and at once if it says that it has more."""
        limits = [
            file_of(listed).limit * (MOST_FILES if isinstance(listed, fields.List) else 1)
            for listed in self._files.values()
        ]
        host, most = request.max_content_length, sum(limits) + self._max_text + CHUNK
        request.max_content_length = most if host is None else min(most, host)
        if (request.content_length or 0) > request.max_content_length:
            largest = min(request.max_content_length, max(file_of(listed).limit for listed in self._files.values()))
            raise ContentTooLarge(f"The request is too large: a file may have {amount(largest)} here.")

    def take_text(self, name: str, chunks: Iterator[bytes]) -> None:
        if name in self._files:
            raise _invalid(name, MESSAGES["invalid"])
        if name in self.data:
            raise _invalid(name, "Sent more than once.")
        if len(self.data) >= MOST_FIELDS:
            raise _invalid(name, "One field too many.")
        content = bytearray()
        for chunk in chunks:
            content += chunk
            self._text += len(chunk)
            if self._text > self._max_text:
                raise ContentTooLarge("The form's fields are longer than any valid input.")
        self.data[name] = self._value(name, content.decode())

    def take_file(self, name: str, filename: str, chunks: Iterator[bytes]) -> None:
        listed = self._files.get(name)
        if listed is None:
            raise _invalid(name, "Not a field that takes a file." if name in self._fields else "Unknown field.")
        several = isinstance(listed, fields.List)
        if name in self.data and (not several or len(self.data[name]) >= MOST_FILES):
            raise _invalid(name, "One file too many.")
        first = next(filter(None, chunks), None)
        if first is None and not filename:
            return  # so a browser says that no file was chosen
        if first is None:
            raise _invalid(name, "The file is empty.")
        reference = self._folder.receive(chain([first], chunks), clean_name(filename), file_of(listed))
        self.data[name] = [*self.data.get(name, ()), reference] if several else reference

    def _value(self, name: str, text: str) -> Any:
        """A field's value: JSON, unless its field takes text."""
        if isinstance(self._fields.get(name), (fields.String, NoneType)):
            return text
        with suppress(msgspec.DecodeError, RecursionError):  # the schema says what is wrong with it
            return msgspec.json.decode(text)
        return text


def _parts(request: Request) -> Iterator[tuple[str, str | None, Iterator[bytes]]]:
    """The parts of a form: name, file name where it is a file, and content. Take the content before the next part.

    :raises ValueError: it is no form.
    """
    if "form" in request.__dict__:  # something before the view has asked for a field, Flask-WTF's CSRFProtect perhaps
        for name, text in request.form.items(multi=True):
            yield name, None, iter([text.encode()])
        for name, storage in request.files.items(multi=True):
            yield name, storage.filename or "", iter(partial(storage.stream.read, CHUNK), b"")
        return
    events = _events(request)
    for event in events:
        if isinstance(event, (FieldPart, FilePart)):
            yield event.name or "", event.filename if isinstance(event, FilePart) else None, _content(events)


def _content(events: Iterator[Event]) -> Iterator[bytes]:
    for event in events:
        if isinstance(event, Data):
            yield event.data
            if not event.more_data:
                return


def _events(request: Request) -> Iterator[Event]:
    boundary = request.mimetype_params.get("boundary", "").encode("ascii")
    if not boundary:
        raise ValueError("a form without a boundary")
    # What comes before a part's content is buffered, and could be without end.
    decoder = MultipartDecoder(boundary, max_form_memory_size=4 * CHUNK)
    event: Event | None = None
    while not isinstance(event, Epilogue):
        chunk = _chunk(request, decoder, b"--" + boundary + b"-")
        try:
            decoder.receive_data(chunk or None)
        except RequestEntityTooLarge:
            raise ValueError("a part whose content does not begin") from None
        while not isinstance(event := decoder.next_event(), (NeedData, Epilogue)):
            yield event


def _chunk(request: Request, decoder: MultipartDecoder, half: bytes) -> bytes:
    """What comes next, in large pieces, of which none ends between the last two dashes of the form.

    Werkzeug takes the CR before them for content if it is given the one without the other (pallets/werkzeug#3285).

    :param half: the last boundary without its last dash.
    """
    chunk = bytearray()
    while len(chunk) < CHUNK and (piece := request.stream.read(CHUNK - len(chunk))):
        chunk += piece
    if (decoder.buffer[-len(half) :] + chunk[-len(half) :]).endswith(half):
        chunk += request.stream.read(1)
    return bytes(chunk)


def clean_name(name: str) -> str:
    """A file's name, of which nothing leads to another folder or hides what it is."""
    last = re.split(r"[/\\]", name)[-1]
    visible = "".join(letter for letter in last if unicodedata.category(letter) not in HIDDEN).strip()
    if visible.strip(".") == "":
        return "file"
    suffix = PurePosixPath(visible).suffix[:LONGEST_NAME]
    return visible if len(visible) <= LONGEST_NAME else visible[: LONGEST_NAME - len(suffix)] + suffix


def _invalid(name: str, message: str) -> InvalidInput:
    return InvalidInput(f"The input is not valid: {name}: {message}", errors={name: [message]})
