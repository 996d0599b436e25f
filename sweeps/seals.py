"""A digest inside a file, of all its bytes: what was cut off, overwritten or edited is known when it is read.

The seal is a text that every format has a place for: a key of Parquet's footer, a comment of YAML, a value of JSON. The
mark on either side of the digest tells a damaged seal from the files of earlier versions, which have none and are read
as they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_MARK = b"circuit-sweep-sha256"
_DIGITS = 2 * hashlib.sha256().digest_size
_BLANK = _MARK + b":" + b"0" * _DIGITS + b":" + _MARK
KEY = "seal"


class Damaged(ValueError):
    """A byte of a file is not what was written."""


def seal(content: bytes) -> bytes:
    """The content, whose one blank seal is filled in."""
    assert content.count(_BLANK) == 1
    return content.replace(_BLANK, _sealed_by(_digest(content)))


def check(content: bytes) -> None:
    """
    Raises:
        Damaged: the seal is not that of the content.
    """
    begins = content.rfind(_MARK, 0, max(0, content.rfind(_MARK)))
    if begins < 0:
        if _MARK in content:
            raise Damaged("it has half of a seal")
        return
    ends = begins + len(_BLANK)
    found = _digest(content[:begins], _BLANK, content[ends:])
    if content[begins:ends] != _sealed_by(found):
        raise Damaged("its seal is that of other bytes")


def parquet_bytes(table: pa.Table) -> bytes:
    """A sealed Parquet file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: _BLANK.decode()})
    return seal(sink.getvalue().to_pybytes())


def parquet_table(content: bytes, columns: list[str] | None = None, dictionaries: list[str] | None = None) -> pa.Table:
    """
    Args:
        columns: to read; None for all.
        dictionaries: columns to leave dictionary-encoded.

    Raises:
        Damaged: a byte is wrong or missing, or it is no Parquet file with these columns.
    """
    check(content)
    try:
        # Pages of files without a seal have checksums. Threads take longer than parts, which are small.
        with pq.ParquetFile(
            pa.BufferReader(content), read_dictionary=dictionaries, page_checksum_verification=True, pre_buffer=False
        ) as file:
            table = file.read(columns, use_threads=False)
    except Exception as error:  # of a damaged footer anything may be raised, not Arrow's own errors only
        raise Damaged(str(error)) from error
    if columns is not None and table.schema.names != columns:
        raise Damaged(f"it has the columns {', '.join(table.schema.names)}")
    return table


def read_parquet(source: Path, columns: list[str] | None = None) -> pa.Table:
    """
    Raises:
        OSError: it is not there.
        Damaged: as ``parquet_table`` says; names the file.
    """
    try:
        return parquet_table(source.read_bytes(), columns)
    except Damaged as error:
        raise Damaged(f"{source} is damaged, or was edited ({error})") from error


def yaml_bytes(plain: dict[str, Any]) -> bytes:
    """A sealed YAML file; the seal is its first line, so that a file that was cut off still has it."""
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return seal(b"# " + _BLANK + b"\n" + text.encode())


def yaml_value(content: bytes) -> Any:
    """
    Raises:
        Damaged: a byte is wrong or missing, or it is no YAML.
    """
    check(content)
    try:
        return yaml.safe_load(content.decode())
    except (ValueError, yaml.YAMLError) as error:
        raise Damaged(str(error)) from error


def json_bytes(plain: dict[str, Any]) -> bytes:
    """A sealed JSON file: the object and its seal."""
    text = json.dumps({KEY: _BLANK.decode()} | plain, indent=2, default=str) + "\n"
    return seal(text.encode())


def json_object(content: bytes) -> dict[str, Any]:
    """The object without its seal.

    Raises:
        Damaged: a byte is wrong or missing, or it is no JSON object.
    """
    check(content)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(str(error)) from error
    if not isinstance(found, dict):
        raise Damaged("it is no object")
    found.pop(KEY, None)
    return found


def _digest(*pieces: bytes) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()


def _sealed_by(digest: bytes) -> bytes:
    return _MARK + b":" + digest + b":" + _MARK
