"""What-if on logged draws: what is known is counted, what is not is bounded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway import commands
from gateway.replay import Case, Wish, report
from router.certify import Certificate
from tests.fakes.answers import UNSURE, student_says
from tests.fakes.rig import FAR, Rig, config_data, rig


class FakeJudge:
    """As much of a judge as a report looks at."""

    version = "v1-test"
    threshold = 0.5
    certificate = Certificate("certified", 0.05, 0.05, "label", tau=0.5)


def case(score: float, disagrees: bool | None, p: float | None = 1.0, part: str = "a") -> Case:
    return Case(score, disagrees, p, part, 0.01, 0.01)


def made(cases: list[Case], **wish: Any) -> dict[str, Any]:
    values = {"alpha": 0.05, "delta": 0.05, "threshold": None, "certify": False, **wish}
    return report(cases, FakeJudge(), Wish(**values))  # type: ignore[arg-type]


def test_unlabelled_traffic_is_bounded_not_ignored() -> None:
    nan, inf = float("nan"), float("inf")
    cases = [case(0.1, False)] * 2 + [case(inf, None, None)] + [case(nan, None, None)] * 3
    found = made(cases)
    assert found["coverage"] == {
        "requests": 6, "coverage_estimate": 1.0, "coverage_at_least": 0.3333,
        "coverage_at_most": 0.8333, "open": 3,
    }  # fmt: skip
    assert found["cost"]["teacher_usd_at_most"] == pytest.approx(0.04)
    assert found["cost"]["teacher_usd_at_least"] == pytest.approx(0.01)


def test_each_draw_stands_for_the_requests_of_its_probability() -> None:
    cases = [case(0.1, False, 0.5)] * 10 + [case(0.9, True, 0.1)] * 4
    found = made(cases)
    assert found["coverage"]["coverage_estimate"] == pytest.approx(20 / 60, abs=1e-4)
    both = made(cases, threshold=1.0)
    assert both["risk"]["risk_estimate"] == pytest.approx(40 / 60, abs=1e-4)
    # The bound thins to one probability: about two of the ten are left beside the four.
    assert both["risk"]["served_draws"] == 14


def test_alpha_is_certified_on_draws_that_did_not_lay_the_grid() -> None:
    cases = [case(n / 2000, n > 1500) for n in range(2000)]
    found = made(cases, alpha=0.05, certify=True)
    assert found["certificate"]["status"] == "certified"
    assert 0.6 < found["threshold"] < 0.8
    assert found["risk"]["holds"]
    nothing = made(cases[:20], alpha=0.05, certify=True)
    assert nothing["certificate"]["status"] == "none"
    assert nothing["coverage"]["coverage_estimate"] == 0.0
    curve = found["curve"]
    assert [p["coverage"] for p in curve] == sorted(p["coverage"] for p in curve)


async def replayed(r: Rig, folder: Path, *options: str) -> str:
    file = folder / "understudy.yaml"
    file.write_text(json.dumps(config_data(r.student.url, r.teacher.url, r.store)))
    arguments = ["replay", "--config", str(file), *options]
    result = await asyncio.to_thread(CliRunner().invoke, commands.app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


async def test_the_command_scores_as_serving_did(tmp_path: Path) -> None:
    risk = {"draw_rate": 1.0, "on_unproven": "serve"}
    async with rig(tmp_path, says="apr", risk=risk) as r:
        for _ in range(3):
            await r.ask()
        await r.ask(FAR)
        r.student.handler = student_says(["h", "mm"], UNSURE)
        await r.ask()
        await r.draws_done(5)
        found = json.loads(await replayed(r, tmp_path, "--json"))
        assert (found["requests"], found["draws"]) == (5, 5)
        assert found["coverage"]["coverage_estimate"] == 0.6
        assert found["coverage"]["coverage_at_least"] == 0.6
        assert found["risk"]["risk_estimate"] == 0.0
        assert found["slices"]["ood"]["coverage_at_least"] == 0.0
        assert found["slices"]["in_distribution"]["served_draws"] == 3
        served = [e for e in r.stored() if e.served_by == "student"]
        assert served[0].score is not None
        strict = await replayed(r, tmp_path, "--threshold", str(served[0].score), "--json")
        assert json.loads(strict)["coverage"]["coverage_estimate"] == 0.0
        plot = tmp_path / "curve.svg"
        text = await replayed(r, tmp_path, "--alpha", "0.02", "--plot", str(plot))
        assert "certificate none: too few calibration rows" in text
        assert plot.read_text().startswith("<svg")


async def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        file = tmp_path / "understudy.yaml"
        file.write_text(json.dumps(config_data(r.student.url, r.teacher.url, r.store)))
        for options, expected in [
            (["--task", "none"], "there is no task"),
            (["--artefact", str(tmp_path)], "cannot be read"),
            (["--since", "yesterday"], "such as 24h"),
        ]:
            arguments = ["replay", "--config", str(file), *options]
            result = await asyncio.to_thread(CliRunner().invoke, commands.app, arguments)
            assert result.exit_code == 1
            assert expected in result.output
