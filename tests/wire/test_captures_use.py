"""What a team does with its captures: follow, count, export, import; beside a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from gateway import exporting
from gateway.errors import StoreError
from gateway.exporting import Format, export_lines
from gateway.scrub import end_user_digest
from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from router.rows import read_rows
from tests.fakes.answers import completion
from tests.fakes.rig import FAR, IN_DOMAIN, rig
from tests.unit.test_store import EXCHANGE
from tests.wire.test_captures_cli import config_file, understudy


async def captures(config: str, *arguments: str) -> str:
    """Run it; its standard output."""
    done = await understudy("captures", *arguments, "--config", config)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_tail_follows_and_list_filters(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        config = config_file(r, tmp_path)
        await r.ask(FAR)
        following = asyncio.create_task(captures(config, "tail", "--count", "2", "--json"))
        while not following.done():
            await r.ask(IN_DOMAIN)
            await asyncio.sleep(0.1)
        rows = [json.loads(line) for line in (await following).splitlines()]
        assert [row["prompt"] for row in rows] == [IN_DOMAIN] * 2
        found = await captures(config, "list", "--json", "--grep", FAR[5:20])
        assert [json.loads(line)["prompt"] for line in found.splitlines()] == [FAR]
        for nothing in (["--principal", "nobody"], ["--status", "error"], ["--until", "1h"]):
            assert await captures(config, "list", "--json", *nothing) == ""


async def test_stats_add_up(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}) as r:
        config = config_file(r, tmp_path)
        for text in (FAR, IN_DOMAIN, FAR):
            await r.ask(text)
        await r.draws_done(3)
        numbers = json.loads(await captures(config, "stats", "--json"))["banking-intents"]
        assert (numbers["requests"], numbers["complete"], numbers["draws"]) == (3, 3, 3)
        assert numbers["draws_disagree"] == 3
        assert {"served_by": "teacher", "reason": "ood", "requests": 2} in numbers["by_reason"]
        assert numbers["prompt_tokens"] > 0
        assert "teacher, ood" in await captures(config, "stats")


async def test_every_format_is_what_its_readers_want(tmp_path: Path) -> None:
    async with rig(tmp_path, risk={"draw_rate": 1.0}) as r:
        config = config_file(r, tmp_path)
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        await r.ask(FAR)
        await r.ask(IN_DOMAIN)
        await r.ask(FAR, tools=tools)
        await r.draws_done(2)
        rows, chats, table = (tmp_path / name for name in ("r.jsonl", "c.jsonl", "t.parquet"))
        await captures(config, "export", "--out", str(rows))
        assert len(read_rows(rows)) == 3
        await captures(config, "export", "--out", str(chats), "--format", "openai")
        lines = [json.loads(line) for line in chats.read_text().splitlines()]
        assert [line["messages"][-1] for line in lines] == [
            {"role": "assistant", "content": "teacher says"}
        ] * 3
        assert [line.get("tools") for line in lines] == [None, None, tools]
        assert {key for line in lines for key in line} == {"messages", "tools"}
        await captures(config, "export", "--out", str(table), "--format", "parquet")
        found = duckdb.execute(
            f"SELECT served_by, count(*), avg(total_ms) > 0, sum(weight) FROM '{table}' "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        assert found == [("student", 1, True, 1.0), ("teacher", 2, True, 1.0)]
        assert duckdb.execute(f"SELECT count(*) FROM '{rows}'").fetchall() == [(3,)]
        read = [json.loads(line)["what"] for line in (await captures(config, "reads")).splitlines()]
        assert read == ["export"] * 3


def many(path: Path, count: int) -> None:
    """A store with so many exchanges."""
    with contextlib.closing(SqliteStore.open(path)) as store:
        chat = {"messages": [{"role": "user", "content": "x"}]}
        store.put(
            replace(EXCHANGE, id=f"n{n:05}", created_at=float(n), draw=None, request=chat,
                    answer=completion(f"a{n}"))
            for n in range(count)
        )  # fmt: skip


def test_a_cut_export_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SAVED_EVERY", 100)
    path, out, whole = tmp_path / "x.db", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    many(path, 1050)

    class Cut(Exception):
        pass

    def steps(until: int | None) -> Any:
        seen = iter(range(1, 10_000))

        def step(_: int) -> None:
            if next(seen) == until:
                raise Cut

        return step

    with contextlib.closing(SqliteStore.read_only(path)) as store:
        for until in (350, 420):
            with pytest.raises(Cut):
                export_lines(store, Filter(), Format.ROWS, out, True, steps(until))
            assert not out.exists()
        assert export_lines(store, Filter(), Format.ROWS, out, True, steps(None)) == 1050
        assert export_lines(store, Filter(), Format.ROWS, whole, False, steps(None)) == 1050
        assert out.read_bytes() == whole.read_bytes()
        assert sorted(p.name for p in tmp_path.glob("*.jsonl*")) == ["out.jsonl", "whole.jsonl"]
        with pytest.raises(Cut):
            export_lines(store, Filter(), Format.ROWS, out, True, steps(350))
        with pytest.raises(StoreError, match="other options"):
            export_lines(store, Filter(task="t"), Format.ROWS, out, True, steps(None))


def test_an_export_is_of_one_moment_and_blocks_no_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    many(path, 300)
    with (
        contextlib.closing(SqliteStore.read_only(path)) as reader,
        contextlib.closing(SqliteStore.open(path, 0.1)) as writer,
    ):
        added = iter(range(10_000))

        def step(_: int) -> None:
            number = next(added)
            late = replace(EXCHANGE, id=f"late{number}", created_at=1e9 + number, draw=None)
            writer.put([late])  # raises where it would have to wait

        count = export_lines(reader, Filter(), Format.ROWS, tmp_path / "o.jsonl", False, step)
        assert count == 300
        assert writer.count(Filter()) == 600


CHAT = [{"role": "system", "content": "sort"}, {"role": "user", "content": "mail bob@acme.org"}]
LISTED = {"data": [{"id": "m0", **message} for message in CHAT]}
STORED = {
    **completion("pay_bill"), "id": "chatcmpl-1", "created": 1_700_000_000,
    "metadata": {"a": "b"}, "messages": LISTED,
}  # fmt: skip
LITELLM = {
    "request_id": "r1", "call_type": "acompletion", "api_key": "hash", "spend": 0.002,
    "prompt_tokens": 10, "completion_tokens": 2, "startTime": "2026-01-02T03:04:05.123Z",
    "model": "gpt-x", "end_user": "jane", "messages": json.dumps(CHAT), "status": "success",
    "response": json.dumps(completion("pay_bill")),
}  # fmt: skip
GOOD: list[dict[str, Any]] = [
    STORED,
    LITELLM,
    {**LITELLM, "request_id": "r2", "messages": "{}", "proxy_server_request": {"messages": CHAT}},
    {"messages": CHAT, "completion": "pay_bill"},
    {"messages": [*CHAT, {"role": "assistant", "content": "transfer"}], "id": "mine"},
    {"text": "what is my apr", "label": "apr"},
    {"prompt": "hello", "completion": "greeting", "created_at": 1_700_000_000},
]
BAD: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ([1], "not a JSON object"),
    ({"messages": CHAT}, "needs 'completion'"),
    ({**LITELLM, "status": "failure"}, "ended with 'failure'"),
    ({**LITELLM, "messages": "{}"}, "holds no messages"),
    ({**STORED, "messages": None}, "holds no messages"),
    ({"messages": CHAT, "completion": ""}, "says nothing"),
    ({"messages": [{"role": 7}], "completion": "x"}, "messages[0]"),
    ({**STORED, "choices": [{**STORED["choices"][0], "finish_reason": "length"}]}, "was cut"),
]


def written(path: Path, rows: list[Any]) -> Path:
    """JSON Lines, packed where the name says so."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
async def test_former_logs_come_in_once(tmp_path: Path, name: str) -> None:
    async with rig(tmp_path, redact=["key", "email"], student=None, router=None) as r:
        config = config_file(r, tmp_path)
        redact = "redact: [key, email]\n  pin_sampling"
        text = Path(config).read_text().replace("pin_sampling", redact)
        Path(config).write_text(text)
        log = str(written(tmp_path / name, [*GOOD, *(row for row, _ in BAD)]))
        done = await understudy("captures", "import", log, "--task", "banking-intents",
                                "--config", config)  # fmt: skip
        assert done.returncode == 0, done.stderr
        read = len(GOOD) + len(BAD)
        assert done.stdout == f"{read} lines, {len(GOOD)} new exchanges, {len(BAD)} left out\n"
        for number, (_, reason) in enumerate(BAD, start=len(GOOD) + 1):
            (line,) = [x for x in done.stderr.splitlines() if f"{name}:{number}:" in x]
            assert reason in line
        again = await understudy("captures", "import", log, "--task", "banking-intents",
                                 "--config", config)  # fmt: skip
        assert ", 0 new exchanges," in again.stdout
        rows = {row.id: row for row in r.stored()}
        assert len(rows) == len(GOOD)
        assert {row.reason for row in rows.values()} == {"imported"}
        assert all(row.fallback for row in rows.values())
        for path in tmp_path.glob("understudy.db*"):
            assert b"bob@acme.org" not in path.read_bytes()
        spent = next(row for row in rows.values() if row.attempts[0].cost_usd)
        assert spent.created_at == 1767323045.123
        assert spent.end_user == end_user_digest("jane")
        assert (spent.attempts[0].prompt_tokens, spent.attempts[0].cost_usd) == (10, 0.002)
        exported = await captures(config, "export", "--fallbacks")
        assert len(exported.splitlines()) == len(GOOD)


async def test_a_log_of_nothing_usable_is_an_error(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        config = config_file(r, tmp_path)
        log = str(written(tmp_path / "log.jsonl", ["{", "{"]))
        done = await understudy("captures", "import", log, "--task", "banking-intents",
                                "--config", config)  # fmt: skip
        assert done.returncode == 1
        none = await understudy("captures", "import", log, "--task", "nobody", "--config", config)
        assert "there is no task 'nobody'" in none.stderr
