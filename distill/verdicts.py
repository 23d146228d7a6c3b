"""The stages that decide: gate, recalibrate, promote, watch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from distill.calibrating import Material, at_best_rate, fit_judge, rows_wanted
from distill.deciding import Decision, Item, cut_short, decide, first
from distill.night import Ended, Night
from distill.replicas import unload_everywhere
from distill.splitting import Split
from distill.stages import asked, combine_rows, placed, trained_rows
from gateway.store.students import VersionState

Facts = dict[str, Any]
UTILITY_MARGIN = 0.02
NEAR_ENOUGH = 0.02
"""A cheaper student whose agreement is at most so much lower than the best one's is preferred."""
TICK_S = 1.0
BY = "distill"


def gate_stage(night: Night) -> Facts:
    """Every candidate against the incumbent, on test rows alone; the cheapest good one goes on."""
    found = night.read_json("evaluation.json")
    wanted = night.job.task.distill
    decisions: dict[str, Decision] = {}
    for name, said in found["candidates"].items():
        items = _items(found, said)
        if said.get("refused") is not None:
            decisions[name] = cut_short(items, said["refused"])
        elif found["incumbent"]["name"] is None:
            decisions[name] = first(items, wanted.min_test_rows)
        else:
            decisions[name] = decide(
                items, wanted.gate_margin, wanted.slice_margin, wanted.min_test_rows,
                UTILITY_MARGIN,
            )  # fmt: skip
    _freeze_failures(night, found)
    facts: Facts = {
        "decisions": {name: d.to_json() for name, d in decisions.items()},
        "files": {"gate.json": night.write_json(
            "gate.json", {name: d.to_json() for name, d in decisions.items()}
        )},
    }  # fmt: skip
    passed = [name for name, decision in decisions.items() if decision.passed]
    chosen, why = _cheapest(passed, decisions)
    for name in decisions:
        if name != chosen:
            _refuse(night, name)
    if chosen is None:
        reason = "; ".join(f"{name}: {d.reason}" for name, d in decisions.items())
        raise Refused(reason, facts)
    return {**facts, "chosen": chosen, "why": why}


class Refused(Ended):
    """The gate keeps the incumbent; ``facts`` are what it saw."""

    def __init__(self, reason: str, facts: Facts) -> None:
        super().__init__("refused", reason)
        self.facts = facts


def recalibrate_stage(night: Night) -> Facts:
    """Once, after the decision, on draws that took no part in any: the certificate."""
    version = night.version(night.outputs["gate"]["chosen"])
    job, wanted, risk = night.job, night.job.task.distill, night.job.task.risk
    examples, places = night.examples("examples.jsonl.gz"), placed(night)
    held = places.of(Split.CALIBRATE, examples)
    # Asked again after a kill, the stage takes the rows that it took.
    fresh = [e for e in held if places.samples[e.id].used_by in (None, version.name)]
    rows = at_best_rate(fresh)
    out = job.folder / "routers" / f"v{version.number}"
    promotion = None
    if wanted.promise == "all_versions":
        promotion = night.registry.certified(job.task.name, before=version) + 1
    floor = max(wanted.min_calibrate_rows, rows_wanted(risk.alpha, risk.delta, promotion))
    if len(rows) < floor:
        night.registry.judged(version.name, VersionState.WAITING)
        raise Ended(
            "waiting",
            f"{version.name} passed the gate; {len(rows)} fresh calibration draws, {floor} are "
            f"needed, {floor - len(rows)} missing",
        )
    combine = combine_rows(night, examples, places)
    job.say(f"asking {version.name} about {len(combine)} combine and {len(rows)} calibrate prompts")
    material = Material(
        trained_rows(night, version),
        asked(night, version, [e.row for e in combine]),
        asked(night, version, [e.row for e in rows]),
    )
    night.samples.use(job.task.name, [e.id for e in rows], version.name)
    artefact = fit_judge(job, version, material, out, promotion, job.say)
    certificate = dict(artefact.manifest["certificate"])
    facts: Facts = {
        "student": version.name,
        "router": str(out),
        "combine_rows": len(combine),
        "calibrate_rows": len(rows),
        "certificate": certificate,
    }
    if certificate["status"] != "certified":
        _refuse(night, version.name, out)
        raise Refused(f"no certificate for {version.name}: {certificate['reason']}", facts)
    night.registry.judged(version.name, VersionState.READY, out)
    return facts


def promote_stage(night: Night) -> Facts:
    """A share of the traffic first where the task says so, else all of it."""
    wanted = night.job.task.distill
    name = night.outputs["gate"]["chosen"]
    row, before = night.deployment(), night.outputs["collect"]["incumbent"]
    live = row.live if row is not None else None
    if live not in (before, name):
        night.registry.judged(name, VersionState.WAITING)
        raise Refused(f"{live} serves now; {name} was measured against {before}", {})
    canary = wanted.canary_s > 0 and row is not None
    share = wanted.canary_share if canary else 1.0
    found = night.registry.promote(name, BY, night.run.id, night.clock(), share)
    return {
        "student": name,
        "revision": found.revision,
        "share": share,
        "before": found.previous if share == 1.0 else found.live,
    }


def watch_stage(night: Night) -> Facts:
    """Until the canary has lived long enough; then all traffic, and old versions unloaded."""
    name, wanted = night.outputs["promote"]["student"], night.job.task.distill
    if night.outputs["promote"]["share"] < 1.0:
        until = time.monotonic() + wanted.canary_s
        while (left := until - time.monotonic()) > 0:
            row = night.deployment()
            if row is None or name not in (row.canary, row.live):
                why = row.note if row is not None else "the deployment is gone"
                night.registry.judged(name, VersionState.REFUSED)
                raise Refused(f"the canary was ended: {why}", {})
            time.sleep(min(TICK_S, left))
            night.beat()
        night.registry.promote(name, BY, night.run.id, night.clock())
    return {"unloaded": _tidy(night)}


def _items(found: dict[str, Any], said: dict[str, Any]) -> list[Item]:
    """The test rows that the candidate was asked about."""
    before, tau, count = found["incumbent"], found["tau"], len(said["agrees"])
    never = [2.0] * count
    old = before["agrees"] or [False] * count
    return [
        Item(row["slice"], agrees, was, row["regression"], score < tau, score_before < tau)
        for row, agrees, was, score, score_before in zip(
            found["rows"][:count], said["agrees"], old[:count], said["scores"] or never,
            (before["scores"] or never)[:count], strict=True,
        )
    ]  # fmt: skip


def _cheapest(passed: list[str], decisions: dict[str, Decision]) -> tuple[str | None, str]:
    """Candidates come cheapest first."""
    if not passed:
        return None, ""
    shares = {name: d.overall.candidate for name, d in decisions.items() if d.overall is not None}
    best = max(shares[name] for name in passed)
    chosen = next(name for name in passed if shares[name] >= best - NEAR_ENOUGH)
    if len(decisions) == 1:
        return chosen, "the only candidate"
    told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return chosen, f"the cheapest that passed within {NEAR_ENOUGH:.0%} of the best ({told})"


def _freeze_failures(night: Night, found: dict[str, Any]) -> None:
    """Test rows on which the incumbent fails belong to the regression set from now on."""
    before = found["incumbent"]
    if before["name"] is not None:
        ids = [
            row["id"] for row, agrees in zip(found["rows"], before["agrees"], strict=True)
            if not agrees
        ]  # fmt: skip
        night.samples.fail(night.job.task.name, ids, before["name"])


def _refuse(night: Night, name: str, router: Path | None = None) -> None:
    version = night.version(name)
    night.registry.judged(name, VersionState.REFUSED, router)
    unload_everywhere(night.job.urls(version.kind), name)


def _tidy(night: Night) -> list[str]:
    """Versions that neither serve nor are where a rollback leads leave the replicas."""
    row = night.deployment()
    keep = {row.live, row.canary, row.previous} if row is not None else set()
    gone: list[str] = []
    for version in night.registry.versions(night.job.task.name):
        if version.name in keep or version.state is VersionState.PLANNED:
            continue
        if unload_everywhere(night.job.urls(version.kind), version.name) == []:
            gone.append(version.name)
    return gone
