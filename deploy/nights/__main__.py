"""``python -m deploy.nights [--short] [--classifier]``: live through the fortnight and tell of it.

Every part is real but the teacher: gateway, student servers, training, the nightly command. Ends
with 1 where a promise of the loop was broken.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.demo.processes import Children, ProcessDied
from deploy.demo.task import INTENTS, TASK
from deploy.nights.page import write_page
from deploy.nights.plan import NEW_INTENTS, RENAMED, Crowd, Day, fortnight, short
from deploy.nights.world import CLINC150, Heard, World
from gateway.config_file import load_config, place_of

POISON = "report_fraud"
KILLED_IN = "evaluate"
PROBE_S = 60.0


@dataclass(slots=True)
class Told:
    """One day and its night."""

    day: int
    event: str | None
    requests: int
    served: float
    agreement: float | None
    new_intents_right: float | None
    """Share of the new intents' requests that the student answered as the teacher would."""
    reasons: dict[str, int]
    audit: dict[str, Any] | None
    gate: dict[str, Any]
    decision: str
    reason: str
    student: str | None
    kind: str | None
    certificate: dict[str, Any] | None
    agreement_on_test: dict[str, float]
    regression: dict[str, Any] | None
    """Past failures among the test rows: the promoted student's agreement and its predecessor's."""
    cost_usd: float
    run_seconds: float
    notes: list[str] = field(default_factory=list)


def main(
    folder: Annotated[Path, typer.Option(help="Where it works; emptied first.")] = Path(
        "var/nights"
    ),
    short_: Annotated[bool, typer.Option("--short", help="Six days, the classifier alone.")] = (
        False
    ),
    classifier: Annotated[bool, typer.Option(help="Fourteen days, the classifier alone.")] = False,
    full: Annotated[bool, typer.Option(help="The language model every night.")] = False,
) -> None:
    """Simulate; the last line on standard output is one JSON object."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    days = short() if short_ else fortnight(not classifier)
    if full:
        days = [Day(d.number, 3 * d.requests, ("classifier", "lora"), d.event) for d in days]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    started = time.monotonic()
    try:
        with Children(folder / "logs") as children:
            crowd = Crowd(CLINC150)
            lora = any("lora" in day.students for day in days)
            world = World.create(children, folder, crowd.probes, lora)
            told = list(_lived(world, crowd, days))
    except ProcessDied as error:
        print(f"nights: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    broken = broken_promises(told)
    write_page(folder / "report.html", [asdict(t) for t in told], broken)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    result = {
        "seconds": round(time.monotonic() - started, 1),
        "nights": [asdict(t) for t in told],
        "broken": broken,
    }
    (folder / "nights.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    raise typer.Exit(1 if broken else 0)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _lived(world: World, crowd: Crowd, days: list[Day]) -> Iterator[Told]:
    intents = sorted(INTENTS)
    for day in days:
        notes: list[str] = []
        if day.event == "new_intents":
            intents = sorted({*INTENTS, *NEW_INTENTS})
            notes.append(f"{len(NEW_INTENTS)} new intents appear")
        if day.event == "teacher_changes":
            world.rename(RENAMED)
            notes.append("the teacher says other words for two labels")
            _until_noticed(world)
        begun = time.time()
        heard = world.play(crowd.day(day.requests, intents))
        if day.event == "poison":
            wrong = [h for h in heard if _truth(h, day, days) != POISON]
            notes.append(f"{world.correct(wrong, POISON)} corrections to {POISON!r}")
        told = _night(world, day, heard, _settings(day), notes, days)
        if day.event == "poison":
            # What an operator does about it the next morning.
            process = world.command(
                "captures", "no-train", "--task", TASK,
                "--since", datetime.fromtimestamp(begun, UTC).isoformat(),
            )  # fmt: skip
            said, _ = process.communicate(timeout=60)
            told.notes.append(f"the morning after: {said.decode().strip()}")
        _print(told)
        yield told


def _settings(day: Day) -> dict[str, Any]:
    settings: dict[str, Any] = {"students": list(day.students), "promise": day.promise}
    if day.event == "broken_training":
        # A learning rate of a thousand times too much; where no language model is trained, a cap
        # on the rows that leaves next to nothing.
        broken = {"learning_rate": 1.0, "epochs": 1.0, "max_rows": 200}
        settings |= broken if "lora" in day.students else {"max_rows": 110, "min_rows": 10}
    return settings


def _night(
    world: World, day: Day, heard: list[Heard], settings: dict[str, Any], notes: list[str],
    days: list[Day],
) -> Told:  # fmt: skip
    morning = world.admin(f"/tasks/{TASK}")
    world.configure(**settings)
    started = time.monotonic()
    if day.event == "killed":
        first = world.command("distill", "run", "--task", TASK)
        killed = world.kill_in(first, KILLED_IN, 300)
        notes.append(f"killed in {KILLED_IN}: {'yes' if killed else 'no'}")
    process = world.command("distill", "run", "--task", TASK, "--json")
    out, err = process.communicate(timeout=1800)
    took = time.monotonic() - started
    (world.folder / "logs" / f"night{day.number}.log").write_bytes(err + out)
    result = json.loads(out.splitlines()[-1]) if out.strip() else {"run": None}
    if result["run"] is None:
        raise ProcessDied(f"night {day.number} said nothing:\n{err.decode()[-2000:]}")
    return _told(world, day, heard, morning, result, took, notes, days)


def _told(
    world: World, day: Day, heard: list[Heard], morning: dict[str, Any], result: dict[str, Any],
    took: float, notes: list[str], days: list[Day],
) -> Told:  # fmt: skip
    place = place_of(load_config(world.config), {})
    with closing(place.ledger()) as ledger:
        stages = {s.name: s for s in ledger.stages(result["run"])}
    with closing(place.registry()) as registry:
        row = registry.deployment(TASK)
        live = registry.version(row.live) if row is not None and row.live else None
    if live is not None and not world.follows(live.name):
        notes.append("the gateway did not follow")
    tries = {s.name: s.tries for s in stages.values() if s.tries > 1}
    if tries:
        notes.append(f"done again: {tries}")
    evaluate = stages["evaluate"].outputs if "evaluate" in stages else None
    calibrate = stages["recalibrate"].outputs if "recalibrate" in stages else None
    by_student = [h for h in heard if h.served_by == "student"]
    right = [h for h in by_student if h.answer == _truth(h, day, days)]
    new = sum(h.utterance.label in NEW_INTENTS for h in heard)
    new_right = sum(h.utterance.label in NEW_INTENTS for h in right)
    regression = None
    if "promote" in stages:
        promoted = (stages["promote"].outputs or {})["student"]
        regression = (stages["gate"].outputs or {})["decisions"][promoted]["regression"]
    return Told(
        day=day.number,
        event=day.event,
        requests=len(heard),
        served=round(len(by_student) / len(heard), 4),
        agreement=round(len(right) / len(by_student), 4) if by_student else None,
        new_intents_right=round(new_right / new, 4) if new else None,
        reasons=dict(Counter(h.reason for h in heard)),
        audit=morning["audit"],
        gate=morning["gate"],
        decision=result["state"],
        reason=result["reason"],
        student=live.name if live is not None else None,
        kind=live.kind.value if live is not None else None,
        certificate=(calibrate or {}).get("certificate"),
        agreement_on_test=(evaluate or {}).get("agreement", {}),
        regression=regression,
        cost_usd=round(sum(s.cost_usd for s in stages.values()), 6),
        run_seconds=round(took, 1),
        notes=notes,
    )


def _truth(heard: Heard, day: Day, days: list[Day]) -> str:
    """The teacher's label on that day."""
    change = next((d.number for d in days if d.event == "teacher_changes"), 99)
    label = heard.utterance.label
    return RENAMED.get(label, label) if day.number >= change else label


def _until_noticed(world: World) -> None:
    """Wait for the daily probe, which here runs every few seconds."""
    until = time.monotonic() + PROBE_S
    while time.monotonic() < until:
        events = world.admin(f"/tasks/{TASK}/events")["data"]
        if any(event["kind"] == "teacher_changed" for event in events):
            return
        time.sleep(0.5)
    raise TimeoutError("the probe did not notice that the teacher had changed")


def broken_promises(told: list[Told]) -> list[str]:
    """What the fortnight was to show and did not."""
    broken = []
    nights = {t.event: t for t in told if t.event is not None}
    for event in ("poison", "broken_training"):
        if event in nights and nights[event].decision not in ("refused", "failed"):
            broken.append(f"{event}: the run ended {nights[event].decision}")
    if "killed" in nights:
        night = nights["killed"]
        resumed = any("killed" in n and "yes" in n for n in night.notes) and any(
            "done again" in n for n in night.notes
        )
        if not resumed or night.decision == "failed":
            broken.append(f"killed: the run ended {night.decision}, {night.notes}")
    if not any(t.decision == "promoted" for t in told):
        broken.append("no student was ever promoted")
    new = nights.get("new_intents")
    after = [t.new_intents_right or 0.0 for t in told if new is not None and t.day > new.day]
    if new is not None and after and max(after) <= (new.new_intents_right or 0.0):
        broken.append("the student answers no more of the new intents after they were learned")
    for night in told:
        past = night.regression
        if past is not None and past["candidate"] < past["incumbent"]:
            broken.append(f"day {night.day}: {night.student} is worse on past failures: {past}")
    return broken


def _print(told: Told) -> None:
    agreement = "-" if told.agreement is None else f"{told.agreement:.1%}"
    audit = told.audit["status"] if told.audit else "-"
    print(
        f"day {told.day:2}  {told.requests} requests  student {told.served:6.1%}  agreement "
        f"{agreement:>6}  {_new(told)}audit {audit:9}  {told.decision}: {told.reason}"
        + "".join(f"\n        {note}" for note in told.notes),
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _new(told: Told) -> str:
    return "" if told.new_intents_right is None else f"new intents {told.new_intents_right:.1%}  "


if __name__ == "__main__":
    typer.run(main)
