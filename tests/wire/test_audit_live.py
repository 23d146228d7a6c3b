"""The live audit end to end: real draws through the gateway, real labels, a gate that closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway import gates
from gateway.auditor import Auditor
from gateway.errors import StoreError
from gateway.standing import Standing
from gateway.store.place import Place
from gateway.tasks import TaskRuntime
from router.audit import AuditStatus
from tests.fakes.answers import refuses, student_says, teacher_says
from tests.fakes.rig import KEY, SECRETS, Rig, config_data, rig

ADMIN = {"authorization": "Bearer us-admin"}
TOP = {"admin": {"key_env": "ADMIN_KEY"}}
ALWAYS = {"draw_rate": 1.0, "alpha": 0.05}


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECRETS, "ADMIN_KEY", "us-admin")


async def until(done: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def ask_many(r: Rig, count: int) -> list[str]:
    """Reasons of ``count`` requests, one after another."""
    return [(await r.ask()).headers["x-understudy-reason"] for _ in range(count)]


def labels(r: Rig) -> int:
    return r.task.standing.labels if r.task.standing else -1


async def test_a_student_that_disagrees_is_refuted_and_the_gate_closes_by_itself(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, says="another", risk=ALWAYS, top=TOP) as r:
        assert (await ask_many(r, 3)) == ["in_distribution"] * 3
        with contextlib.suppress(AssertionError):
            for _ in range(40):
                await ask_many(r, 1)
                if r.task.closed:
                    break
        await until(lambda: r.task.closed is not None, "the gate never closed")
        assert await ask_many(r, 2) == ["gate_closed"] * 2
        assert r.metric("understudy_gate_open", task="banking-intents") == 0.0
        assert r.metric(
            "understudy_audit_state", task="banking-intents", state="refuted"
        ) == 1.0  # fmt: skip
        lower = r.metric("understudy_risk_lower_bound", task="banking-intents")
        assert 0.05 < lower <= r.metric("understudy_risk_upper_bound", task="banking-intents")
        shown = (await r.client.get("/admin/tasks/banking-intents", headers=ADMIN)).json()
        assert shown["gate"]["open"] is False
        assert "labels disagree" in shown["gate"]["reason"]
        events = (await r.client.get("/admin/tasks/banking-intents/events", headers=ADMIN)).json()[
            "data"
        ]
        assert [e["kind"] for e in events] == ["gate_closed", "refuted", "audit_began"]
        assert r.metric(
            "understudy_events_total", task="banking-intents", kind="refuted"
        ) == 1.0  # fmt: skip


async def test_a_closed_gate_survives_a_restart_and_opens_on_an_operator_s_word(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, says="another", risk=ALWAYS, top=TOP) as r:
        while not r.task.closed:
            await ask_many(r, 1)
    async with rig(tmp_path, says="apr", risk=ALWAYS, top=TOP) as r:
        assert await ask_many(r, 1) == ["gate_closed"]  # from the first request on
        answer = await r.client.post(
            "/admin/tasks/banking-intents/gate",
            headers=ADMIN,
            json={"open": True, "note": "the teacher had a bad day"},
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["gate"] == {"open": True, "reason": None}
        assert await ask_many(r, 1) == ["in_distribution"]
        await until(lambda: labels(r) == 1, "the label did not count")
        standing = r.task.standing
        assert standing is not None
        # A new epoch: what refuted the version is not counted again, and less delta is left.
        assert (standing.number, standing.errors, standing.status) == (2, 0, AuditStatus.UNPROVEN)


async def test_agreement_confirms_and_draws_go_down_to_their_floor(tmp_path: Path) -> None:
    risk = {"draw_rate": 0.01, "unproven_draw_rate": 1.0, "alpha": 0.3}
    async with rig(tmp_path, says="apr", risk=risk) as r:
        assert r.task.draw_rate == 1.0
        await ask_many(r, 30)
        await until(
            lambda: r.task.standing is not None and r.task.standing.status is AuditStatus.CONFIRMED,
            f"not confirmed: {r.task.standing}",
        )
        assert r.task.draw_rate == 0.01
        assert r.metric("understudy_audit_labels_missing", task="banking-intents") == 0.0
        await ask_many(r, 1)
        assert [e.draw_p for e in r.stored()][:: len(r.stored()) - 1] == [1.0, 0.01]


async def test_until_confirmed_ops_see_what_is_missing_and_when_it_will_be_there(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, says="apr", risk=ALWAYS, top=TOP) as r:
        await ask_many(r, 4)
        await until(lambda: labels(r) == 4, "four labels")
        audit = (await r.client.get("/admin/tasks", headers=ADMIN)).json()["data"][0]["audit"]
        assert audit["status"] == "unproven"
        assert 60 < audit["labels_missing"] < 110
        assert audit["eta_s"] > 0
        assert audit["risk_upper_bound"] > 0.05
        whole = (await r.client.get("/admin/tasks/banking-intents", headers=ADMIN)).json()
        assert whole["certificate"]["n"] > 0
        assert whole["certificate"]["groups"] == 1198
        assert set(whole["artefact"]["splits"]) == {"train", "combine", "calibrate"}
        assert whole["artefact"]["decode_profile"]["temperature"] == 0.0
        assert len(whole["artefact"]["sha256"]) == 64


async def test_a_draw_whose_answer_never_comes_counts_as_a_disagreement(tmp_path: Path) -> None:
    risk = {**ALWAYS, "audit_timeout_s": 0.3}
    async with rig(tmp_path, risk=risk) as r:
        r.never_break()
        r.teacher.handler = refuses
        await ask_many(r, 2)
        await until(lambda: labels(r) == 2, "missing answers never counted", 30)
        assert r.task.standing is not None
        assert r.task.standing.errors == 2


async def test_labels_wait_for_an_earlier_draw(tmp_path: Path) -> None:
    """Answers that come early must not choose which labels count."""
    async with rig(tmp_path, says="apr", risk=ALWAYS) as r:
        r.never_break()
        r.teacher.handler = refuses
        await ask_many(r, 1)
        await asyncio.sleep(0.3)
        r.teacher.handler = teacher_says("apr")
        await ask_many(r, 3)
        with contextlib.closing(Place(r.store).audits()) as store:
            done = "SELECT state FROM draws ORDER BY seq"
            states = [s for (s,) in store._db.execute(done)]
        assert len(states) == 4
        if states[0] == "pending":
            assert labels(r) == 0
        await until(lambda: labels(r) == 4, "all labels in the end", 30)


async def test_under_a_closed_gate_the_audit_goes_on_in_the_shadow(tmp_path: Path) -> None:
    risk = {"draw_rate": 1.0, "alpha": 0.3, "on_unproven": "close"}
    async with rig(tmp_path, says="apr", risk=risk) as r:
        assert await ask_many(r, 12) == ["gate_closed"] * 12
        await ask_many(r, 12)
        await until(lambda: r.task.closed is None, f"never confirmed: {r.task.standing}", 20)
        assert await ask_many(r, 1) == ["in_distribution"]
        assert r.task.standing is not None
        assert r.task.standing.labels >= 12


async def test_a_shadow_answer_that_would_not_be_served_is_no_label(tmp_path: Path) -> None:
    risk = {"draw_rate": 1.0, "alpha": 0.3, "on_unproven": "close"}
    async with rig(tmp_path, says="apr", risk=risk) as r:
        r.student.handler = student_says(["h", "mm"], -3.0)
        await ask_many(r, 3)
        await r.draws_done(3)
        await asyncio.sleep(1.3)
        assert labels(r) == 0


async def test_what_one_replica_s_labels_refute_closes_the_gate_of_every_replica(
    tmp_path: Path,
) -> None:
    risk = {**ALWAYS, "draw_rate": 1.0}
    async with rig(tmp_path, says="another", risk=risk) as one, rig(tmp_path, risk=risk) as two:
        while not one.task.closed:
            await ask_many(one, 1)
        await until(lambda: two.task.closed is not None, "the other replica did not follow")
        assert await ask_many(two, 1) == ["gate_closed"]
        assert one.task.standing is not None and two.task.standing is not None
        assert two.task.standing.number == one.task.standing.number == 1


async def test_an_operator_closes_and_opens_from_the_terminal(tmp_path: Path) -> None:
    async with rig(tmp_path, says="apr", risk={"draw_rate": 0.0}) as r:
        data = config_data(r.student.url, r.teacher.url, r.store, risk={"draw_rate": 0.0})
        file = tmp_path / "understudy.yaml"
        file.write_text(json.dumps(data))
        await until(lambda: r.task.standing is not None, "no first word")

        async def command(*arguments: str) -> str:
            result = await asyncio.to_thread(CliRunner().invoke, gates.app, list(arguments))
            assert result.exit_code == 0, result.output
            return result.output

        await command("close", "--config", str(file), "--note", "incident 12")
        await until(lambda: r.task.closed is not None, "the gateway did not follow")
        assert await ask_many(r, 1) == ["gate_closed"]
        shown = await command("show", "--config", str(file))
        assert "closed" in shown
        assert "incident 12" in shown
        await command("open", "--config", str(file), "--note", "over")
        await until(lambda: r.task.closed is None, "the gateway did not follow")
        assert await ask_many(r, 1) == ["in_distribution"]


async def test_a_memory_that_cannot_be_read_keeps_the_gate_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a refutation; the teacher serves until somebody can look."""
    advance, broken = Auditor.advance, [True]

    def failing(auditor: Auditor, task: TaskRuntime) -> Standing:
        if broken:
            raise StoreError("disk I/O error")
        return advance(auditor, task)

    monkeypatch.setattr(Auditor, "advance", failing)
    async with rig(tmp_path) as r:
        assert await ask_many(r, 1) == ["gate_closed"]
        broken.clear()
        await until(lambda: r.task.closed is None, "it did not recover")
        assert await ask_many(r, 1) == ["in_distribution"]
        broken.append(True)  # later the last word stands
        await asyncio.sleep(1.2)
        assert await ask_many(r, 1) == ["in_distribution"]


@pytest.mark.parametrize("auth", [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}])
async def test_admin_needs_its_own_key(tmp_path: Path, auth: dict[str, str]) -> None:
    async with rig(tmp_path, top=TOP) as r, httpx.AsyncClient(base_url=r.url) as bare:
        for method, path in [
            ("GET", "/admin/tasks"),
            ("GET", "/admin/tasks/banking-intents"),
            ("GET", "/admin/tasks/banking-intents/events"),
            ("POST", "/admin/tasks/banking-intents/gate"),
        ]:
            body = {"open": False, "note": "x"}
            answer = await bare.request(method, path, headers=auth, json=body)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "invalid_admin_key"
        assert r.task.closed is None


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("none/gate", {"open": True, "note": "x"}, 404, "task_not_found"),
        ("banking-intents/gate", {"open": "yes", "note": "x"}, 400, "invalid_value"),
        ("banking-intents/gate", {"open": True}, 400, "invalid_value"),
        ("banking-intents/gate", [], 400, "invalid_value"),
    ],
)
async def test_admin_says_what_is_wrong(
    tmp_path: Path, path: str, body: Any, status: int, code: str
) -> None:
    async with rig(tmp_path, top=TOP) as r:
        answer = await r.client.post(f"/admin/tasks/{path}", headers=ADMIN, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_gate_without_a_certified_promise_cannot_be_opened(tmp_path: Path) -> None:
    async with rig(tmp_path, top=TOP, risk={"alpha": 0.0001}) as r:
        answer = await r.client.post(
            "/admin/tasks/banking-intents/gate", headers=ADMIN, json={"open": True, "note": "x"}
        )
        assert answer.status_code == 409
        assert "asks for 0.0001" in answer.json()["error"]["message"]


async def test_without_an_admin_key_there_is_no_admin(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert (await r.client.get("/admin/tasks", headers=ADMIN)).status_code == 404
