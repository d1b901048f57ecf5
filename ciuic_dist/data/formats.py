"""Readers of single files: text, JSON lines, Parquet.

A reader yields UTF-8 pieces; ``DOCUMENT_END`` follows the last piece of each document. Large
text files come in several pieces, so that nothing needs a whole file in memory but the tokens.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ciuic_dist.data.errors import DataError

DOCUMENT_END: Final = b""
_PIECE: Final = 1 << 20  # bytes

Reader = Callable[[Path, str], Iterator[bytes]]


def text(path: Path, _field: str) -> Iterator[bytes]:
    """The file as one document, in pieces of whole lines."""
    offset = 0
    with path.open("rb") as file:
        while piece := b"".join(file.readlines(_PIECE)):
            try:
                piece.decode()
            except UnicodeDecodeError as error:
                raise _undecodable(path, f"byte {offset + error.start}", error) from error
            yield piece if offset else piece.removeprefix(codecs.BOM_UTF8)
            offset += len(piece)
    if offset:
        yield DOCUMENT_END


def json_lines(path: Path, field: str) -> Iterator[bytes]:
    """A document a line: the string under ``field``. Blank lines are passed over."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if not line.strip():
                continue
            where = f"line {number}"
            yield from _document(_json_field(line, field, path, where), path, where)


def parquet(path: Path, field: str) -> Iterator[bytes]:
    """A document a row: the text of column ``field``. Null and empty rows are passed over."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise DataError(
                    f"{path} has no column {field!r}; it has {_listed(columns)}: set data.text_field to one of them"
                )
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    if value is not None:
                        yield from _document(value, path, f"column {field!r}, row {row}")
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _json_field(line: bytes, field: str, path: Path, where: str) -> Any:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _undecodable(path, where, error) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}, {where}: not JSON ({error}); give one JSON object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}, {where}: a JSON object is wanted, here is a {type(record).__name__}")
    if field not in record:
        raise DataError(
            f"{path}, {where}: no field {field!r}; it has {_listed(record)}: set data.text_field to one of them"
        )
    return record[field]


def _document(value: object, path: Path, where: str) -> Iterator[bytes]:
    if not isinstance(value, str):
        raise DataError(f"{path}, {where}: text is wanted, here is a {type(value).__name__}; set data.text_field")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}, {where}: text that no UTF-8 can hold ({error.reason})") from error
    if encoded:
        yield encoded
        yield DOCUMENT_END


def _undecodable(path: Path, where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}, {where}: not UTF-8 ({error.reason}); convert the file, or take it out of data.path")


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
