"""Registry and ledger, over SQLite and a real Postgres."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StoreError
from gateway.store.audits import AuditStore, EventKind
from gateway.store.ledger import Figures, Ledger, RunState, StageState, open_run
from gateway.store.place import Place
from gateway.store.samples import Label, Sample
from gateway.store.students import Kind, Plan, Registry, Version, VersionState
from tests.unit.test_store import EXCHANGE

TASK = "t"


@pytest.fixture
def registry(place: Place) -> Iterator[Registry]:
    with contextlib.closing(place.registry()) as opened:
        yield opened


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    with contextlib.closing(place.ledger()) as opened:
        yield opened


def plan(run: str, data: str = "d1", kind: Kind = Kind.CLASSIFIER) -> Plan:
    return Plan(TASK, kind, None, run, data)


def ready(registry: Registry, run: str) -> Version:
    version = registry.plan(plan(run), Path("/students"), 1.0)
    registry.trained(version.name, "sha", {"rows": 3})
    registry.judged(version.name, VersionState.READY, Path(f"/routers/v{version.number}"))
    found = registry.version(version.name)
    assert found is not None
    return found


def events(place: Place) -> list[EventKind]:
    with contextlib.closing(AuditStore(place.repository())) as store:
        return [event.kind for event in store.events(TASK)]


def test_a_run_takes_one_name_per_kind_and_training_set(registry: Registry) -> None:
    first = registry.plan(plan("r1"), Path("/students"), 1.0)
    assert (first.name, first.folder, first.state) == (
        "t@v1", Path("/students/v1"), VersionState.PLANNED,
    )  # fmt: skip
    assert registry.plan(plan("r1"), Path("/students"), 9.0) == first
    assert registry.plan(plan("r1", kind=Kind.LORA), Path("/s"), 1.0).name == "t@v2"
    assert registry.plan(plan("r2"), Path("/students"), 1.0).name == "t@v3"
    with pytest.raises(StoreError, match="a version has one training set"):
        registry.plan(plan("r1", "d2"), Path("/students"), 1.0)
    assert [v.name for v in registry.versions(TASK)] == ["t@v1", "t@v2", "t@v3"]


def test_names_are_taken_once_whoever_asks_at_once(place: Place) -> None:
    names: list[str] = []

    def take(run: str) -> None:
        with contextlib.closing(place.registry()) as registry:
            names.append(registry.plan(plan(run), Path("/s"), 1.0).name)

    threads = [threading.Thread(target=take, args=(f"r{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == [f"t@v{n}" for n in range(1, 9)]


def test_nothing_serves_without_a_certificate(registry: Registry) -> None:
    version = registry.plan(plan("r1"), Path("/s"), 1.0)
    for name, why in ((version.name, "planned"), ("t@v9", "no student version")):
        with pytest.raises(StoreError, match=why):
            registry.promote(name, "me", "n", 2.0)
    registry.trained(version.name, "sha", {})
    registry.judged(version.name, VersionState.REFUSED, Path("/routers/v1"))
    with pytest.raises(StoreError, match="refused: without a certificate none serves"):
        registry.promote(version.name, "me", "n", 2.0)
    assert registry.deployment(TASK) is None
    assert registry.revisions() == {}


def test_promotion_canary_and_rollback(registry: Registry, place: Place) -> None:
    one, two, three = (ready(registry, f"r{n}").name for n in range(3))
    # The first has nobody to be a canary beside.
    row = registry.promote(one, "me", "n", 1.0, share=0.1)
    assert (row.live, row.canary, row.previous, row.revision) == (one, None, None, 1)
    with pytest.raises(StoreError, match="no version before"):
        registry.roll_back(TASK, "me", "n", 2.0)
    row = registry.promote(two, "me", "n", 3.0, share=0.25)
    assert (row.live, row.canary, row.canary_share, row.revision) == (one, two, 0.25, 2)
    row = registry.roll_back(TASK, "gateway", "it failed", 4.0)
    assert (row.live, row.canary, row.canary_share, row.revision) == (one, None, 0.0, 3)
    row = registry.promote(two, "me", "n", 5.0)
    assert (row.live, row.canary, row.previous) == (two, None, one)
    assert registry.promote(two, "me", "again", 6.0) == row
    row = registry.roll_back(TASK, "me", "n", 7.0)
    assert (row.live, row.previous) == (one, two)
    row = registry.roll_back(TASK, "me", "n", 8.0)
    assert (row.live, row.previous) == (two, one)
    row = registry.roll_back(TASK, "me", "n", 9.0, to=three)
    assert (row.live, row.previous, row.revision) == (three, two, 7)
    assert registry.revisions() == {TASK: 7}
    assert events(place)[::-1] == [
        EventKind.PROMOTED, EventKind.CANARY, EventKind.ROLLED_BACK, EventKind.PROMOTED,
        EventKind.ROLLED_BACK, EventKind.ROLLED_BACK, EventKind.ROLLED_BACK,
    ]  # fmt: skip


def test_every_attempt_to_certify_counts(registry: Registry) -> None:
    first = ready(registry, "r1")
    second = registry.plan(plan("r2"), Path("/s"), 1.0)
    third = registry.plan(plan("r3"), Path("/s"), 1.0)
    assert [registry.certified(TASK, v) for v in (first, second, third)] == [0, 1, 1]
    registry.judged(second.name, VersionState.REFUSED, Path("/routers/v2"))
    assert registry.certified(TASK, third) == 2


def test_one_run_at_a_time(ledger: Ledger) -> None:
    assert ledger.lease(TASK, "a", 0.0, 60.0)
    assert not ledger.lease(TASK, "b", 30.0, 90.0)
    assert ledger.lease("other", "b", 30.0, 90.0)
    assert ledger.lease(TASK, "a", 30.0, 90.0)
    assert ledger.leased(TASK, 80.0) == "a"
    ledger.release(TASK, "b")
    assert not ledger.lease(TASK, "b", 80.0, 120.0)
    assert ledger.lease(TASK, "b", 91.0, 120.0)
    ledger.release(TASK, "b")
    assert ledger.leased(TASK, 92.0) is None


def test_figures_are_of_every_task_and_its_latest_split(ledger: Ledger) -> None:
    assert ledger.figures() == Figures()
    for number, (task, state) in enumerate(
        [("a", RunState.PROMOTED), ("a", RunState.FAILED), ("b", RunState.REFUSED)]
    ):
        run = ledger.start(task, "cron", {}, "code", 10.0 * number)
        ledger.begin_stage(run, "split", {}, 10.0 * number)
        split = {"train": number, "groups": 7, "files": {"x": "y"}}
        ledger.end_stage(run, "split", split, 10.0 * number + 1)
        ledger.end(run, state, "", 10.0 * number + 2)
    ledger.start("b", "cron", {}, "code", 100.0)
    assert ledger.figures() == Figures(
        {("a", "promoted"): 1, ("a", "failed"): 1, ("b", "refused"): 1},
        {"a": 2.0, "b": 22.0},
        {("a", "train"): 1, ("b", "train"): 2},
    )


def test_stages_of_a_run(ledger: Ledger, place: Place) -> None:
    run = ledger.start(TASK, "cron", {"alpha": 0.05}, "code", 1.0)
    assert (run.id, open_run(ledger, TASK)) == ("t-1", run)
    ledger.begin_stage(run, "collect", {}, 2.0)
    ledger.spend(run, "collect", 0.3)
    ledger.spend(run, "collect", 0.2)
    ledger.end_stage(run, "collect", {"rows": 3}, 3.0)
    ledger.begin_stage(run, "train", {"collect": {"sha256": "x"}}, 4.0)
    ledger.spend(run, "train", 0.125)
    ledger.fail_stage(run, "train", "no room", 5.0)
    ledger.begin_stage(run, "train", {"collect": {"sha256": "x"}}, 6.0)
    first, second = ledger.stages(run.id)
    assert (first.state, first.outputs, first.cost_usd) == (StageState.DONE, {"rows": 3}, 0.5)
    assert (second.state, second.tries, second.error) == (StageState.RUNNING, 2, None)
    # What was spent counts, however the stage ended.
    assert ledger.spent_today(TASK, 80_000.0) == 0.625
    assert ledger.spent_today(TASK, 86_400.0) == 0.0
    ledger.end(run, RunState.FAILED, "train: no room", 7.0)
    assert open_run(ledger, TASK) is None
    ledger.reopen(run)
    assert ledger.cancel(run.id)
    # The last stage ends with the run or not at all.
    ledger.end(run, RunState.REFUSED, "worse", 8.0, ("train", {"seen": 1}))
    done = ledger.run(run.id)
    assert done is not None
    assert (done.state, done.reason, done.cancel) == (RunState.REFUSED, "worse", True)
    assert ledger.stages(run.id)[1].outputs == {"seen": 1}
    ledger.end(run, RunState.PROMOTED, "never", 9.0)
    assert ledger.runs(TASK)[0].state is RunState.REFUSED
    assert not ledger.cancel(run.id)
    assert events(place) == [EventKind.RUN_REFUSED, EventKind.RUN_FAILED]


def test_samples_keep_who_used_them(place: Place) -> None:
    with contextlib.closing(place.samples()) as samples:
        samples.put(TASK, [Sample("a", "g", "calibrate"), Sample("b", "g", "test")])
        samples.use(TASK, ["a"], "t@v1")
        samples.use(TASK, ["a"], "t@v2")
        samples.fail(TASK, ["b"], "t@v1")
        samples.fail(TASK, ["b"], "t@v3")
        samples.put(TASK, [Sample("a", "h", "test", True)])
        assert samples.of_task(TASK) == {
            "a": Sample("a", "h", "test", True, "t@v1", None),
            "b": Sample("b", "g", "test", False, None, "t@v1"),
        }
        assert samples.of_task("other") == {}
        samples.relabel(TASK, [Label("a", "x", "big", 1.0), Label("a", "y", "big", 2.0)])
        assert samples.labels(TASK) == {"a": Label("a", "y", "big", 2.0)}


def test_what_is_withheld_stays_so(place: Place) -> None:
    with contextlib.closing(place.repository()) as store:
        store.put([EXCHANGE])
        with contextlib.closing(place.samples()) as samples:
            assert samples.withhold(EXCHANGE.task, [EXCHANGE.id, "none"]) == 1
            assert samples.withhold(EXCHANGE.task, [EXCHANGE.id]) == 0
            assert samples.withhold("other", [EXCHANGE.id]) == 0
        (found,) = store.of_ids([EXCHANGE.id])
    assert found.no_train


def test_what_is_forgotten_is_no_sample(place: Place) -> None:
    with contextlib.closing(place.repository()) as store:
        store.put([EXCHANGE])
    with contextlib.closing(place.samples()) as samples:
        samples.put(EXCHANGE.task, [Sample(EXCHANGE.id, "g", "test")])
        samples.relabel(EXCHANGE.task, [Label(EXCHANGE.id, "text", "big", 1.0)])
        with contextlib.closing(place.keeping()) as keeping:
            assert keeping.delete_before(EXCHANGE.task, EXCHANGE.created_at + 1) == 1
        assert samples.of_task(EXCHANGE.task) == {}
        assert samples.labels(EXCHANGE.task) == {}
