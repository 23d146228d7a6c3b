"""``POST /v1/feedback``, as an application sends it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.store.training import training_row
from tests.fakes.rig import FAR, IN_DOMAIN, PLAIN_KEY, Rig, config_data, rig
from tests.wire.test_captures_cli import understudy

PLAIN = {"authorization": f"Bearer {PLAIN_KEY}"}


async def tell(r: Rig, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """Send feedback."""
    return await r.client.post("/v1/feedback", json=body, headers=headers or {})


async def asked(r: Rig, text: str = FAR, headers: dict[str, str] | None = None) -> str:
    """Ask; the request's id."""
    return (await r.ask(text, headers=headers)).headers["x-request-id"]


def may_correct(**more: Any) -> dict[str, Any]:
    """The rig's keys, of which ``app`` may correct."""
    keys = [
        {"name": "app", "key_env": "UNDERSTUDY_KEY", "may_override": True, "may_correct": True},
        {"name": "plain", "key_env": "PLAIN_KEY", **more},
    ]
    return {"keys": keys}


async def exported(r: Rig, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Rows of ``captures export``."""
    config = folder / "understudy.yaml"
    config.write_text(yaml.safe_dump(config_data(r.student.url, r.teacher.url, r.store)))
    done = await understudy("captures", "export", "--config", str(config), *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_correction_becomes_the_label_where_the_key_may(tmp_path: Path) -> None:
    async with rig(tmp_path, top=may_correct()) as r:
        mine, other = await asked(r), await asked(r, headers=PLAIN)
        told = await tell(r, request_id=mine, correction="pay_bill", rating="down")
        assert told.status_code == 200
        assert told.json() == {
            "object": "feedback", "request_id": mine, "rating": "down", "state": "accepted",
        }  # fmt: skip
        suggested = await tell(r, PLAIN, request_id=f"chatcmpl-{other}", correction="pay_bill")
        assert suggested.json()["state"] == "suggested"
        rows = {row["id"]: row for row in await exported(r, tmp_path)}
        assert (rows[mine]["completion"], rows[mine]["completed_by"]) == ("pay_bill", "human")
        assert rows[mine]["use"] == "train"  # chosen by people: no sample of the traffic
        assert (rows[other]["completion"], rows[other]["completed_by"]) == (
            "teacher says",
            "teacher",
        )
        labels = {"task": "banking-intents", "kind": "correction"}
        assert r.metric("understudy_feedback_total", state="accepted", **labels) == 1
        assert r.metric("understudy_feedback_total", state="suggested", **labels) == 1


async def test_a_drawn_row_s_correction_may_calibrate(tmp_path: Path) -> None:
    async with rig(tmp_path, top=may_correct(), risk={"draw_rate": 1.0}) as r:
        drawn = await asked(r, IN_DOMAIN)
        await r.draws_done(1)
        await tell(r, request_id=drawn, correction="apr")
        (row,) = await exported(r, tmp_path, "--drawn")
        assert row["completion"] == "apr"
        assert row["weight"] == 1.0
        assert "use" not in row
        assert row["student"]["text"]
        assert training_row(r.last()) is not None


async def test_saying_it_again_changes_nothing_and_the_latest_counts(tmp_path: Path) -> None:
    async with rig(tmp_path, top=may_correct()) as r:
        mine = await asked(r)
        both = await asyncio.gather(*(tell(r, request_id=mine, rating="up") for _ in range(5)))
        assert {x.status_code for x in both} == {200}
        labels = {"task": "banking-intents", "kind": "up", "state": "noted"}
        assert r.metric("understudy_feedback_total", **labels) == 1
        await tell(r, request_id=mine, correction="first")
        await tell(r, request_id=mine, correction="second")
        (row,) = await exported(r, tmp_path)
        assert row["completion"] == "second"


async def test_only_the_key_that_asked_may_speak_of_it(tmp_path: Path) -> None:
    async with rig(tmp_path, top=may_correct()) as r:
        mine = await asked(r)
        for request_id in (mine, "0" * 32):
            refused = await tell(r, PLAIN, request_id=request_id, rating="up")
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "exchange_not_found"
        wrong = {"authorization": "Bearer nobody"}
        assert (await tell(r, wrong, request_id=mine, rating="up")).status_code == 401


async def test_feedback_is_capped_by_key_and_day(tmp_path: Path) -> None:
    async with rig(tmp_path, top=may_correct(feedback_per_day=2)) as r:
        ids = [await asked(r, headers=PLAIN) for _ in range(3)]
        told = [await tell(r, PLAIN, request_id=id_, rating="down") for id_ in ids]
        assert [x.status_code for x in told] == [200, 200, 429]
        assert told[2].json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(told[2].headers["retry-after"]) <= 86_400
        # What was said may still be changed, and other keys have their own.
        assert (await tell(r, PLAIN, request_id=ids[0], rating="up")).status_code == 200
        assert (await tell(r, request_id=await asked(r), rating="up")).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"rating": "up"}, "request_id"),
        ({"request_id": 7, "rating": "up"}, "request_id"),
        ({"request_id": "", "rating": "up"}, "request_id"),
        ({"request_id": "x" * 500, "rating": "up"}, "request_id"),
        ({"request_id": "a"}, "rating"),
        ({"request_id": "a", "rating": "meh"}, "rating"),
        ({"request_id": "a", "rating": 5}, "rating"),
        ({"request_id": "a", "correction": ""}, "correction"),
        ({"request_id": "a", "correction": 3}, "correction"),
        ({"request_id": "a", "correction": "x" * 70_000}, "correction"),
        ({"request_id": "a", "rating": "up", "comment": []}, "comment"),
        ({"request_id": "a", "rating": "up", "comment": "x" * 2001}, "comment"),
        ({"request_id": "a", "rating": "up", "ratting": "up"}, "ratting"),
    ],
)
async def test_a_body_that_cannot_be_meant_is_told(
    tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    async with rig(tmp_path) as r:
        response = await r.client.post("/v1/feedback", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert (await r.client.post("/v1/feedback", content=b"{")).status_code == 400


async def test_what_people_say_is_redacted_as_what_they_asked(tmp_path: Path) -> None:
    async with rig(
        tmp_path, top=may_correct(), redact=["key", "email"], student=None, router=None
    ) as r:
        mine = await asked(r, "mail bob@acme.org")
        await tell(r, request_id=mine, correction="to bob@acme.org", comment="ask zoe@acme.org")
        (said,) = r.service.feedback.store.of(mine)
        assert said.correction == "to ada@example.com"
        assert said.comment == "ask ben@example.com"


async def test_a_correction_may_be_json(tmp_path: Path) -> None:
    async with rig(tmp_path, top=may_correct()) as r:
        mine = await asked(r)
        await tell(r, request_id=mine, correction={"intent": "pay_bill", "n": [1]})
        (row,) = await exported(r, tmp_path)
        assert row["completion"] == '{"intent":"pay_bill","n":[1]}'
