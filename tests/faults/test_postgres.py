"""Postgres stops, is slow, is full, or has no connection left: serving never does, and everything
that was acknowledged arrives there once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.store.faults import WriteError
from gateway.store.migrating import upgrade
from gateway.store.place import Place
from gateway.store.postgres import PostgresStore
from gateway.store.records import Filter
from gateway.store.rows import COLUMNS, exchange_values
from gateway.store.sqlite import SqliteStore
from tests.fakes.postgres import Postgres
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import FAR, SECRETS
from tests.faults.kills import Witness, agreeing_upstreams, kill_often, one_answer, under_load
from tests.faults.tcp import TcpProxy
from tests.faults.tmpfs import mounted
from tests.unit.test_store import EXCHANGE, written_beside_a_failing_transaction
from tests.wire.test_captures_cli import understudy

URL = "POSTGRES_URL"
KILLS = 12
"""``make bench-kills POSTGRES=1`` does it 50 times."""


@dataclass(slots=True)
class Shipping:
    """Gateways before one Postgres."""

    server: Postgres
    folder: Path
    data: dict[str, Any]
    stack: AsyncExitStack
    witness: Witness = field(default_factory=Witness)
    gateways: list[GatewayProcess] = field(default_factory=list)

    async def gateway(self, name: str = "g", url: str | None = None) -> GatewayProcess:
        """One more of them, with an outbox of its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        data = {**self.data, "store": f"sqlite:///{folder / 'understudy.db'}",
                "postgres": {"url_env": URL}}  # fmt: skip
        env = {URL: url or self.server.url}
        gateway = await self.stack.enter_async_context(gateway_process(folder, data, env=env))
        self.gateways.append(gateway)
        return gateway

    async def asked(self, gateway: GatewayProcess, count: int) -> None:
        """Some answers; each must come, and be acknowledged."""
        seen = Witness()
        async with gateway.client() as client:
            for number in range(count):
                await one_answer(client, number, seen)
        assert len(seen.ended) == count
        self.witness.ended |= seen.ended

    def outbox(self, name: str = "g") -> int:
        """What waits there."""
        path = self.folder / name / "understudy.db"
        with contextlib.closing(SqliteStore.read_only(path)) as store:
            return store.count(Filter())

    def ids(self) -> list[str]:
        """What Postgres has, as often as it has it."""
        return [row[0] for row in self.server.execute("SELECT id FROM exchanges")]

    async def arrived(self, seconds: float = 60.0) -> None:
        """Everything acknowledged is in Postgres, once, and the outboxes are empty."""
        async with asyncio.timeout(seconds):
            while any(self.outbox(gateway.log.parent.name) for gateway in self.gateways):
                await asyncio.sleep(0.1)
        stored = self.ids()
        assert len(stored) == len(set(stored))
        missing = self.witness.ended - set(stored)
        assert not missing, f"{len(missing)} of {len(self.witness.ended)} are lost"


@pytest.fixture
async def shipping(tmp_path: Path, database: Postgres) -> AsyncIterator[Shipping]:
    async with AsyncExitStack() as stack:
        data = await stack.enter_async_context(agreeing_upstreams(tmp_path / "unused.db"))
        yield Shipping(database, tmp_path, data, stack)


def test_a_write_beside_another_thread_s_transaction_is_not_undone_with_it(
    database: Postgres,
) -> None:
    upgrade(database.url)
    with contextlib.closing(PostgresStore(database.url)) as store:
        written_beside_a_failing_transaction(store)


async def test_exchanges_go_to_postgres_and_leave_the_outbox(shipping: Shipping) -> None:
    gateway = await shipping.gateway()
    await shipping.asked(gateway, 60)
    await shipping.arrived()
    with contextlib.closing(PostgresStore(shipping.server.url)) as store:
        rows = list(store.read(Filter()))
        assert {row.served_by for row in rows} == {"student", "teacher"}
        assert all(row.answer and row.attempts for row in rows)
        drawn = [row for row in rows if row.draw is not None]
        assert drawn
    async with gateway.client() as client:
        metrics = (await client.get("/metrics")).text
        assert "understudy_outbox_shipped_total 60.0" in metrics
        # What is asked for by id is found wherever it is by now.
        await one_answer(client, 0, shipping.witness)
        request_id = max(shipping.witness.ended)
        said = await client.post("/v1/feedback", json={"request_id": request_id, "rating": "up"})
        assert said.status_code == 200, said.text


async def test_an_outage_stops_nothing_and_loses_nothing(shipping: Shipping) -> None:
    gateway = await shipping.gateway()
    await shipping.asked(gateway, 20)
    async with under_load(gateway, shipping.witness):
        await asyncio.sleep(1)
        shipping.server.stop()
        await asyncio.sleep(4)
        waiting = shipping.outbox()
        assert waiting > 20
        shipping.server.start()
        await asyncio.sleep(1)
    assert shipping.witness.cut == 0
    await shipping.arrived()
    assert len(shipping.witness.ended) > waiting


async def test_a_gateway_starts_without_postgres_and_ships_the_backlog(shipping: Shipping) -> None:
    gateway = await shipping.gateway()
    await shipping.asked(gateway, 5)
    shipping.server.stop()
    await shipping.asked(gateway, 20)
    gateway.kill()
    await gateway.process.wait()
    again = await shipping.gateway()
    await shipping.asked(again, 10)  # the audit cannot be read: the teacher serves
    assert shipping.outbox() >= 30
    shipping.server.start()
    await shipping.arrived()
    # And the schema comes by itself where nobody was there to make it.
    assert shipping.server.execute("SELECT version_num FROM alembic_version") == [("0003",)]


async def test_a_slow_postgres_slows_no_answer(shipping: Shipping) -> None:
    proxy = TcpProxy(shipping.server.port)
    await shipping.stack.enter_async_context(proxy.running())
    url = shipping.server.url.replace(str(shipping.server.port), str(proxy.port))
    gateway = await shipping.gateway(url=url)
    proxy.delay_s = 0.5
    async with asyncio.timeout(20):
        await shipping.asked(gateway, 60)
    proxy.delay_s, proxy.hanging = 0.0, True
    async with asyncio.timeout(20):
        await shipping.asked(gateway, 60)
    proxy.hanging = False
    proxy.cut()
    await shipping.arrived()


async def test_a_cut_connection_ships_again_and_once(shipping: Shipping) -> None:
    proxy = TcpProxy(shipping.server.port, delay_s=0.002)
    await shipping.stack.enter_async_context(proxy.running())
    url = shipping.server.url.replace(str(shipping.server.port), str(proxy.port))
    gateway = await shipping.gateway(url=url)
    rng = random.Random(3)
    async with under_load(gateway, shipping.witness):
        for _ in range(25):
            await asyncio.sleep(rng.uniform(0.02, 0.3))
            proxy.cut()
    assert shipping.witness.cut == 0
    await shipping.arrived()


async def test_no_connection_left_is_an_outage_like_another(shipping: Shipping) -> None:
    gateway = await shipping.gateway()
    with contextlib.ExitStack() as taken:
        shipping.server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'understudy'"
        )
        with pytest.raises(psycopg.OperationalError):
            while True:
                taken.enter_context(psycopg.connect(shipping.server.url))
        await shipping.asked(gateway, 30)
        assert shipping.outbox() == 30
    await shipping.arrived()


async def test_a_full_postgres_is_an_outage_like_another(
    shipping: Shipping, tmp_path: Path
) -> None:
    """Its tables lie on a file system of a few megabytes, which somebody else fills."""
    small = shipping.server.folder / "small"
    small.mkdir(exist_ok=True)
    with mounted(small, 24):
        space = small / "space"
        space.mkdir()
        if shipping.server.user is not None:
            subprocess.run(["chown", "-R", shipping.server.user, str(space)], check=True)
        shipping.server.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        shipping.server.execute("ALTER DATABASE postgres SET default_tablespace = small")
        try:
            gateway = await shipping.gateway()
            await shipping.asked(gateway, 10)
            await shipping.arrived()
            fill = small / "fill"
            with contextlib.suppress(OSError), fill.open("wb") as handle:
                while True:
                    handle.write(b"x" * 65536)
            await shipping.asked(gateway, 400)
            assert shipping.outbox() > 0
            assert "No space left" in gateway.log.read_text()
            fill.unlink()
            await shipping.arrived()
        finally:
            for running in shipping.gateways:
                running.kill()
                await running.process.wait()
            shipping.server.execute("ALTER DATABASE postgres RESET default_tablespace")
            shipping.server.fresh()
            shipping.server.execute("DROP TABLESPACE IF EXISTS small")


@pytest.mark.timeout(600)
async def test_kills_with_shipping_lose_nothing_and_double_nothing(
    tmp_path: Path, database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECRETS, URL, database.url)
    store = tmp_path / "understudy.db"
    async with agreeing_upstreams(store) as data:
        data["postgres"] = {"url_env": URL}
        toll = await kill_often(tmp_path, data, KILLS, random.Random(5))
        async with gateway_process(tmp_path, data):
            async with asyncio.timeout(60):
                with contextlib.closing(SqliteStore.read_only(store)) as outbox:
                    while outbox.count(Filter()):
                        await asyncio.sleep(0.1)
    stored = [row[0] for row in database.execute("SELECT id FROM exchanges")]
    assert len(stored) == len(set(stored))
    assert len(toll.witness.ended) > 10 * KILLS
    assert not toll.witness.ended - set(stored)
    (half,) = database.execute(
        "SELECT count(*) FROM exchanges e WHERE status = 'complete' AND (answer IS NULL OR "
        "NOT EXISTS (SELECT 1 FROM attempts a WHERE a.exchange_id = e.id))"
    )[0]
    assert half == 0


async def test_two_gateways_share_draws_audit_and_spend(shipping: Shipping) -> None:
    shipping.data["tasks"][0]["risk"] = {"draw_rate": 1.0}
    one, two = await shipping.gateway("one"), await shipping.gateway("two")
    old_gateway(shipping.server, "a third's")  # of a task that neither knows
    await asyncio.gather(shipping.asked(one, 60), shipping.asked(two, 60))
    await shipping.arrived()
    async with asyncio.timeout(60):
        while shipping.server.execute(
            "SELECT 1 FROM draws WHERE state = 'pending' AND task <> 't'"
        ):
            await asyncio.sleep(0.1)
    assert shipping.server.execute("SELECT state FROM draws WHERE task = 't'") == [("pending",)]
    ((draws, done),) = shipping.server.execute(
        "SELECT count(*), count(*) FILTER (WHERE tries = 1) FROM draws WHERE task <> 't'"
    )
    assert draws == done > 100  # each was asked for once, whoever asked
    async with asyncio.timeout(30):
        while True:
            sql = "SELECT sum(labels), count(*) FROM audits"
            ((labels, epochs),) = shipping.server.execute(sql)
            expected = shipping.server.execute(
                "SELECT count(*) FROM draws d JOIN exchanges e ON e.id = d.exchange_id "
                "WHERE e.served_by = 'student' AND e.reason = 'in_distribution'"
            )[0][0]
            if (labels, epochs) == (expected, 1):
                break
            await asyncio.sleep(0.1)
    assert expected > 30


def old_gateway(server: Postgres, name: str) -> None:
    """What a gateway of before consent was stored writes."""
    known = COLUMNS[: COLUMNS.index("no_train")]
    columns, row = ", ".join(known), exchange_values(replace(EXCHANGE, id=name, draw=None))
    marks = ", ".join(["%s"] * len(known))
    with psycopg.connect(server.url, cursor_factory=psycopg.ClientCursor) as connection:
        values = [v.decode() if isinstance(v, bytes) else v for v in row[: len(known)]]
        connection.execute(f"INSERT INTO exchanges ({columns}) VALUES ({marks})".encode(), values)
        connection.execute(
            "INSERT INTO draws (exchange_id, task, p, wants, state, tries, updated_at) "
            "VALUES (%s, 't', 0.5, 'student', 'pending', 0, 1)",
            [name],
        )


async def test_neighbouring_schemas_work_side_by_side(shipping: Shipping) -> None:
    """A gateway of before the last step writes what it knows, before and after the step."""
    server = shipping.server
    assert upgrade(server.url, "0002") == "0002"
    # The new one serves and ships before anybody upgraded the schema...
    shipping.data["tasks"][0]["risk"] = {"draw_rate": 0.0}
    folder = shipping.folder / "g"
    folder.mkdir()
    data = {**shipping.data, "store": f"sqlite:///{folder / 'understudy.db'}",
            "postgres": {"url_env": URL, "migrate": False}}  # fmt: skip
    running = gateway_process(folder, data, env={URL: server.url})
    gateway = await shipping.stack.enter_async_context(running)
    shipping.gateways.append(gateway)
    old_gateway(server, "old-before")
    await shipping.asked(gateway, 20)
    await shipping.arrived()
    with contextlib.closing(PostgresStore(server.url)) as store:
        assert len(list(store.read(Filter()))) == 21
        # What must not be trained on waits for the schema that can say so.
        with pytest.raises(WriteError, match="understudy db upgrade"):
            store.put([replace(EXCHANGE, id="private", no_train=True)])
    # ... somebody does, under load, and the old one goes on.
    async with under_load(gateway, shipping.witness):
        assert await asyncio.to_thread(upgrade, server.url) == "0003"
        await asyncio.sleep(0.5)
    old_gateway(server, "old-after")
    assert shipping.witness.cut == 0
    await shipping.arrived()
    with contextlib.closing(Place(folder / "x.db", server.url).repository()) as store:
        claimed = {job.exchange_id for job in store.claim_draws(10, 1e12, 60.0, ["t"])}
    assert claimed >= {"old-before", "old-after"}


def test_a_schema_of_the_future_is_left_alone(database: Postgres) -> None:
    upgrade(database.url)
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    assert upgrade(database.url) == "9999"


def test_a_wrong_url_is_told_without_its_password() -> None:
    store = PostgresStore("postgresql://app:hunter2@127.0.0.1:9/none")
    with pytest.raises(Exception, match="postgres: ") as told:
        store.count(Filter())
    assert "hunter2" not in str(told.value)


async def test_the_commands_work_on_postgres(
    shipping: Shipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, shipping.server.url)
    gateway = await shipping.gateway()
    config = str(gateway.config)
    async with gateway.client() as client:
        for number in range(6):
            user = "jane" if number % 2 else "bob"
            chat = [{"role": "user", "content": f"{FAR} canary-{user}"}]
            body = {"model": "banking-intents", "user": user, "messages": chat}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    async with asyncio.timeout(20):
        while shipping.outbox():
            await asyncio.sleep(0.1)

    async def told(*arguments: str) -> str:
        done = await understudy(*arguments, "--config", config)
        assert done.returncode == 0, done.stderr
        return done.stdout

    status = json.loads(await told("db", "status"))
    assert status == {"outbox": 0, "postgres": 6}
    assert "at revision 0003" in await told("db", "upgrade")
    listed = [json.loads(x) for x in (await told("captures", "list", "--json")).splitlines()]
    assert len(listed) == 6
    found = await told("captures", "list", "--json", "--grep", "canary-jane")
    assert len(found.splitlines()) == 3
    shown = json.loads(await told("captures", "show", listed[0]["id"]))
    assert shown["answer"]["choices"]
    numbers = json.loads(await told("captures", "stats", "--json"))["banking-intents"]
    assert (numbers["requests"], numbers["complete"]) == (6, 6)
    out = shipping.folder / "rows.jsonl"
    await told("captures", "export", "--out", str(out))
    assert out.read_text().count("canary-jane") == 3
    log = shipping.folder / "log.jsonl"
    log.write_text(json.dumps({"text": "what is my apr", "label": "apr"}) + "\n")
    for new in (1, 0):
        said = await told("captures", "import", str(log), "--task", "banking-intents")
        assert said == f"1 lines, {new} new exchanges, 0 left out\n"
    assert len((await told("review", "list")).splitlines()) > 0
    assert "3 exchanges deleted" in await told("captures", "forget", "--user", "jane")
    assert out.read_text().count("canary-jane") == 0
    assert shipping.server.execute("SELECT count(*) FROM exchanges") == [(4,)]
    assert len((await told("captures", "reads")).splitlines()) >= 5
    assert "banking-intents" in await told("gate", "show")
    await told("keys", "revoke", "plain", "--note", "lost")
    assert shipping.server.execute("SELECT principal FROM revoked_keys") == [("plain",)]
