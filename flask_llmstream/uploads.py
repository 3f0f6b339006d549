"""Files that come with a request: they wait in a folder that web processes and workers share, as long as their run.

What stands for a file in the input, and in the run's record, is a `Reference`, of which the schema's `File` makes an
`Upload`. A schema takes no reference that a client has written itself, as JSON: `forms.read_form` makes them of what is
uploaded, and `from_record` of what a record has. So nobody reaches a file of another's.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
from marshmallow import Schema, fields

from .errors import ConfigurationError, ContentTooLarge, FileRefused, StoreUnavailable
from .filetypes import NAMES, TEXTS, encoding, sniff

AnySchema = TypeVar("AnySchema", bound=Schema)

ID = re.compile(r"[A-Za-z0-9_-]{32}")
"""192 random bits, as `secrets.token_urlsafe` writes them, in which nothing leads out of the folder."""
MESSAGES = {
    "invalid": "Send a file, as a part of multipart/form-data.",
    "type": "Not a file of a type that is taken here.",
    "size": "Larger than a file may be here.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file that a client has sent.

    :param name: what the client calls it, without folders and control characters.
    :param type: its media type, by what is in it.
    :param size: bytes.
    :param digest: SHA-256 of its content, in hexadecimal.
    :param folder: where it is kept.
    """

    id: str
    name: str
    type: str
    size: int
    digest: str
    folder: Path = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """Where it is, until its run has ended."""
        return self.folder / self.id

    def open(self) -> BinaryIO:
        """Open it for reading."""
        return self.path.open("rb")

    def text(self) -> str:
        """The whole of a text, decoded.

        :raises ValueError: it is none.
        """
        content = self.path.read_bytes()
        return content.decode(encoding(content))


class Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a reference says of a file; see `Upload`."""

    id: str
    name: str
    type: str
    size: int
    digest: str


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands for a file in an input: as JSON, ``{"file": {"id": ..., "name": ..., ...}}``."""

    file: Described


class File(fields.Field[Upload]):
    """A field of a schema that takes a file. It stands at the schema's top, alone or in a `List`.

    :param types: the media types that are taken, of those in `NAMES`. ``text/plain`` takes any text.
    :param max_size: bytes; None leaves it to ``LLMSTREAM_MAX_UPLOAD``.
    """

    def __init__(self, *, types: Sequence[str], max_size: int | None = None, **more: Any) -> None:
        unknown = set(types) - set(NAMES) if not isinstance(types, str) else {types}
        if unknown or not types:
            raise ConfigurationError(f"File(types=) takes a list of any of {', '.join(NAMES)}; it is {types!r}.")
        metadata = {"type": "string", "format": "binary", **more.pop("metadata", {})}  # as OpenAPI describes a file
        super().__init__(metadata=metadata, error_messages={**MESSAGES, **more.pop("error_messages", {})}, **more)
        self.types = tuple(types)
        self.max_size = max_size
        self.folder: Folder | None = None

    @property
    def kept_in(self) -> Folder:
        """The folder of the application whose schema it belongs to."""
        if self.folder is None:
            raise ConfigurationError("A File stands at the top of a feature's input schema, alone or in a List.")
        return self.folder

    @property
    def limit(self) -> int:
        """The most bytes that the file may have."""
        return self.max_size or self.kept_in.max_size

    def taken_as(self, kind: str) -> str | None:
        """The type that a file of this one is kept under, or None if it is not taken."""
        if kind in self.types:
            return kind
        return "text/plain" if kind in TEXTS.values() and "text/plain" in self.types else None

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any) -> Upload:
        if isinstance(value, Reference):
            value = Upload(**msgspec.structs.asdict(value.file), folder=self.kept_in.path)
        if not isinstance(value, Upload):
            raise self.make_error("invalid")
        if value.type not in self.types:
            raise self.make_error("type")
        if value.size > self.limit:
            raise self.make_error("size")
        return value


@dataclass(frozen=True, slots=True)
class Folder:
    """Where an application's processes keep the files of runs that have not ended. It is made when it is first used.

    :param path: a folder that all of them reach under this name, as one user of the system.
    :param max_size: bytes of a file, where its field says nothing.
    """

    path: Path
    max_size: int

    def bind(self, schema: AnySchema) -> AnySchema:
        """Have the files of a schema kept here."""
        for listed in file_fields(schema).values():
            file_of(listed).folder = self
        return schema

    def receive(self, chunks: Iterator[bytes], name: str, taker: File) -> Reference:
        """Write down a file as it comes; on any error nothing of it is left.

        :param name: what the client calls it, cleaned.
        :raises ContentTooLarge: it has more bytes than its field takes.
        :raises FileRefused: it is of another type.
        :raises StoreUnavailable: the disk does not take it.
        """
        file_id, size, hashed = secrets.token_urlsafe(24), 0, sha256()
        path = self.path / file_id
        with ExitStack() as undo:
            undo.callback(_remove, path)
            with _disk():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
            with file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > taker.limit:
                        raise ContentTooLarge(f"{name} is too large: a file may have {amount(taker.limit)} here.")
                    hashed.update(chunk)
                    with _disk():
                        _write(file, chunk)
            with _disk():
                found = sniff(path, name)
            kind = taker.taken_as(found)
            if kind is None:
                raise FileRefused(_refusal(name, found, taker.types), accepts=list(taker.types))
            undo.pop_all()
        return Reference(Described(file_id, name, kind, size, hashed.hexdigest()))

    def discard(self, data: Any) -> None:
        """Remove the files that an input refers to: nobody needs them any more.

        :param data: as `read_form` returned it, or as the run's record has it.
        """
        values = data.values() if isinstance(data, Mapping) else ()
        for value in values:
            for one in value if isinstance(value, list) else [value]:
                reference = _reference(one)
                if reference is not None:
                    _remove(self.path / reference.file.id)

    def missing(self, data: Any) -> str | None:
        """The name of a file that an input refers to, and that is not here.

        :param data: as the run's record has it.
        """
        values = data.values() if isinstance(data, Mapping) else ()
        for value in values:
            for one in value if isinstance(value, list) else [value]:
                reference = _reference(one)
                if reference is not None and not (self.path / reference.file.id).is_file():
                    return reference.file.name
        return None

    def sweep(self, older_than: float) -> int:
        """Remove what processes that were killed have left.

        :param older_than: seconds; more than any run waits and takes, all of its attempts together.
        :returns: the number of files.
        """
        if not self.path.is_dir():
            return 0
        before, swept = time.time() - older_than, 0
        for entry in os.scandir(self.path):
            with suppress(FileNotFoundError):  # another process sweeps too
                if ID.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.path)
                    swept += 1
        return swept


def file_fields(schema: Schema) -> dict[str, fields.Field[Any]]:
    """The fields of a schema that take files, each a `File` or a `List` of such, by their names in the input."""
    return {
        listed.data_key or name: listed
        for name, listed in schema.load_fields.items()
        if isinstance(listed, File) or (isinstance(listed, fields.List) and isinstance(listed.inner, File))
    }


def nests_files(schema: type[Schema] | Schema, *, seen: frozenset[type[Schema]] = frozenset()) -> bool:
    """Whether files are expected below the top of a schema, where none can be sent.

    :param seen: the schemas around it, which may contain themselves.
    """
    for listed in schema._declared_fields.values():
        inner = listed.inner if isinstance(listed, fields.List) else listed
        if not isinstance(inner, fields.Nested) or (kind := type(inner.schema)) in seen:
            continue
        if file_fields(inner.schema) or nests_files(inner.schema, seen=seen | {kind}):
            return True
    return False


def from_record(schema: Schema, data: Any) -> Any:
    """The input that a run's record has, in which JSON refers to files. Never give it what a client has sent."""
    if not isinstance(data, Mapping):
        return data
    references: dict[str, Any] = {}
    for name in file_fields(schema).keys() & data.keys():
        value = data[name]
        if isinstance(value, list):
            references[name] = [_reference(one) or one for one in value]
        else:
            references[name] = _reference(value) or value
    return {**data, **references}


def without_ids(data: Any) -> Any:
    """An input that is the same when the same files are sent again."""

    def described(value: Any) -> Any:
        if isinstance(value, list):
            return [described(one) for one in value]
        if isinstance(value, Reference):
            return {"file": msgspec.structs.asdict(value.file) | {"id": ""}}
        return value

    return {name: described(value) for name, value in data.items()} if isinstance(data, Mapping) else data


def amount(size: int) -> str:
    """So many bytes, for a person."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"


def file_of(listed: fields.Field[Any]) -> File:
    one = listed.inner if isinstance(listed, fields.List) else listed
    assert isinstance(one, File)
    return one


def _reference(value: Any) -> Reference | None:
    """What a record has in the place of a file; None for anything else."""
    try:
        reference = value if isinstance(value, Reference) else msgspec.convert(value, Reference)
    except msgspec.ValidationError:
        return None
    return reference if ID.fullmatch(reference.file.id) else None


def _refusal(name: str, kind: str, types: Sequence[str]) -> str:
    found = f"of type {NAMES[kind]}, by what is in it" if kind in NAMES else "of no type that is known here"
    return f"{name} is {found}. Taken here: {', '.join(NAMES[one] for one in types)}."


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _remove(path: Path) -> None:
    with suppress(OSError):  # it is swept later
        path.unlink(missing_ok=True)


@contextmanager
def _disk() -> Iterator[None]:
    """Tell what is wrong with the folder from what is wrong with the request."""
    try:
        yield
    except OSError as error:
        detail = "The server cannot keep files at the moment."
        raise StoreUnavailable(detail, diagnosis=f"LLMSTREAM_UPLOADS: {error}") from error
