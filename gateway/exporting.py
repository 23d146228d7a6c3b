"""``understudy captures export``: a snapshot of the store as files that others read.

A row per exchange, in order of time. The file grows under another name and gets its own by one
rename; what was written of it when the export was cut is taken up again with ``--resume``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import StoreError
from gateway.store.feedback import corrections
from gateway.store.records import Exchange, Filter
from gateway.store.repository import CHUNK, Repository, batches
from gateway.store.training import fine_tuning_row, messages_of, training_row
from router.folders import new_file

SAVED_EVERY = 1000
"""Rows between two notes of how far the export is."""


class Format(StrEnum):
    """What an export looks like."""

    ROWS = "rows"
    """JSON Lines that ``router fit`` and ``student train`` read."""
    OPENAI = "openai"
    """OpenAI's fine-tuning format: a chat per line."""
    PARQUET = "parquet"
    """Columns, for DuckDB, pandas and the like; needs pyarrow."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far an export is: the last exchange that is in it, and where its row ends."""

    created_at: float
    id: str
    bytes: int
    rows: int
    asked: str


def export_lines(
    store: Repository,
    which: Filter,
    form: Format,
    out: Path,
    resume: bool,
    step: Callable[[int], None],
) -> int:
    """Write JSON Lines; ``step`` hears how many exchanges were looked at.

    Returns:
        The number of rows in the file.

    Raises:
        StoreError: the part that is there belongs to another export.
        OSError: the file cannot be written; what was written stays for ``resume``.
    """
    part, note = _beside(out, ".part"), _beside(out, ".mark")
    asked = repr((asdict(which), form.value))
    mark = _mark(note, asked) if resume and part.exists() else None
    which = which if mark is None else replace(which, after=(mark.created_at, mark.id))
    rows, seen = (mark.rows if mark else 0), 0
    with part.open("r+b" if mark else "wb") as handle:
        handle.truncate(mark.bytes if mark else 0)
        handle.seek(0, os.SEEK_END)
        with store.snapshot():
            for exchange, line in _lines(store, which, form):
                if line is not None:
                    handle.write(line)
                    rows += 1
                seen += 1
                if seen % SAVED_EVERY == 0:
                    place = exchange.created_at, exchange.id
                    _save(handle, note, Mark(*place, handle.tell(), rows, asked))
                step(1)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(out)
    note.unlink(missing_ok=True)
    return rows


def lines(store: Repository, which: Filter, form: Format) -> Iterator[bytes]:
    """The same, one line after another, for standard output."""
    with store.snapshot():
        for _, line in _lines(store, which, form):
            if line is not None:
                yield line


def _lines(
    store: Repository, which: Filter, form: Format
) -> Iterator[tuple[Exchange, bytes | None]]:
    """Every exchange with its line, if it has one."""
    make = fine_tuning_row if form is Format.OPENAI else training_row
    for exchange, correction in _corrected(store, which):
        row = make(exchange, correction)
        line = None if row is None else orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        yield exchange, line


def _corrected(store: Repository, which: Filter) -> Iterator[tuple[Exchange, str | None]]:
    """Exchanges with their accepted corrections, looked up some at a time."""
    for batch in batches(store.read(which), CHUNK):
        found = corrections(store, [exchange.id for exchange in batch])
        for exchange in batch:
            yield exchange, found.get(exchange.id)


def export_parquet(store: Repository, which: Filter, out: Path, step: Callable[[int], None]) -> int:
    """Write one Parquet file, a row per exchange, whole or not.

    Raises:
        StoreError: pyarrow is not there.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise StoreError("Parquet needs pyarrow: pip install 'understudy[parquet]'") from error
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _PARQUET.items()])
    rows = 0
    with (
        new_file(out) as part,
        store.snapshot(),
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        for batch in batches(_corrected(store, which), SAVED_EVERY):
            table = [_flat(exchange, correction) for exchange, correction in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(table, schema=schema))
            rows += len(batch)
            step(len(batch))
    return rows


_PARQUET: Mapping[str, str] = {
    "id": "string", "created_at": "float64", "task": "string", "principal": "string",
    "api": "string", "model": "string", "stream": "bool_", "status": "string",
    "served_by": "string", "reason": "string", "would_be_reason": "string", "score": "float64",
    "threshold": "float64", "ood_score": "float64", "template": "string", "student": "string",
    "router": "string", "arm": "string", "error": "string", "messages": "string",
    "completion": "string", "completed_by": "string", "corrected": "bool_", "draw_p": "float64",
    "weight": "float64", "draw_state": "string", "agrees": "bool_", "student_text": "string",
    "prompt_tokens": "int64", "completion_tokens": "int64", "cost_usd": "float64",
    "overhead_ms": "float64", "total_ms": "float64",
}  # fmt: skip


def _flat(e: Exchange, correction: str | None) -> dict[str, Any]:
    row = training_row(e, correction) or {}
    known = {name: getattr(e, name) for name in _PARQUET if hasattr(e, name)}
    return known | {
        "api": e.api.value,
        "status": e.status.value,
        "messages": orjson.dumps(messages_of(e)).decode(),
        "completion": row.get("completion"),
        "completed_by": row.get("completed_by"),
        "corrected": correction is not None,
        "weight": row.get("weight"),
        "draw_state": e.draw.state.value if e.draw else None,
        "agrees": e.draw.agrees if e.draw else None,
        "student_text": row.get("student", {}).get("text"),
        "prompt_tokens": sum(a.prompt_tokens for a in e.attempts),
        "completion_tokens": sum(a.completion_tokens for a in e.attempts),
        "cost_usd": sum(a.cost_usd for a in e.attempts),
    }


@dataclass(frozen=True, slots=True)
class Gone:
    """What an export must forget: ids, and for formats without ids what was asked."""

    ids: frozenset[str]
    chats: frozenset[bytes]

    def matches(self, line: bytes) -> bool:
        """Whether a line is of a forgotten exchange."""
        row = orjson.loads(line)
        if "id" in row:
            return row["id"] in self.ids
        return chat_key(row["messages"][:-1]) in self.chats


def chat_key(messages: Any) -> bytes:
    """What was asked, to be compared."""
    return orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)


def forget_in_file(path: Path, form: str, gone: Gone) -> int:
    """Take rows of forgotten exchanges out of an exported file, by a new file in its place.

    Returns:
        How many rows went.

    Raises:
        StoreError: the file cannot be rewritten; it is as it was.
    """
    try:
        with new_file(path) as new:
            if form == Format.PARQUET:
                return _forget_in_parquet(path, new, gone.ids)
            count = 0
            with path.open("rb") as source, new.open("wb") as target:
                for line in source:
                    if gone.matches(line):
                        count += 1
                    else:
                        target.write(line)
                target.flush()
                os.fsync(target.fileno())
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: cannot be rewritten: {error}") from error
    return count


def _forget_in_parquet(path: Path, new: Path, ids: frozenset[str]) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    kept = table.filter(pc.invert(pc.is_in(table["id"], value_set=pa.array(sorted(ids)))))
    pq.write_table(kept, new, compression="zstd")
    return int(table.num_rows - kept.num_rows)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _save(handle: Any, note: Path, mark: Mark) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    with new_file(note) as new:
        new.write_bytes(orjson.dumps(asdict(mark)))


def _mark(note: Path, asked: str) -> Mark | None:
    with contextlib.suppress(FileNotFoundError):
        mark = Mark(**orjson.loads(note.read_bytes()))
        if mark.asked != asked:
            raise StoreError(f"{note}: belongs to an export with other options; remove it")
        return mark
    return None
