"""One run from its first stage to its last, or from where it was killed.

A stage is begun in the ledger before it does anything and ended after everything it left is on
disk. Whatever dies in between is done again on the same inputs; nothing that is done is done twice.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill import stages, verdicts
from distill.evaluating import evaluate_stage
from distill.executor import executor_of
from distill.job import Job, code_version
from distill.night import Cancelled, Ended, LeaseLost, Night
from distill.report import write_report
from distill.verdicts import Refused
from gateway.errors import StoreError
from gateway.store.ledger import Ledger, Run, RunState, StageState, open_run
from gateway.store.run_files import tidy
from gateway.store.students import VersionState

Stage = Callable[[Night], Mapping[str, object]]
STAGES: Mapping[str, Stage] = {
    "collect": stages.collect_stage,
    "split": stages.split_stage,
    "curate": stages.curate_stage,
    "train": stages.train_stage,
    "load": stages.load_stage,
    "evaluate": evaluate_stage,
    "gate": verdicts.gate_stage,
    "recalibrate": verdicts.recalibrate_stage,
    "promote": verdicts.promote_stage,
    "watch": verdicts.watch_stage,
}
LEASE_S = 60.0
BEAT_S = 10.0
_ENDS = {
    "refused": RunState.REFUSED,
    "waiting": RunState.WAITING,
    "skipped": RunState.SKIPPED,
}


class Busy(Exception):
    """Another process runs this task."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    run: Run
    state: RunState
    reason: str


def start(job: Job, trigger: str) -> Result:
    """Begin a run and carry it to its end; a run that was killed is resumed instead.

    Raises:
        Busy: the task is being run.
        StoreError: the ledger does not answer.
    """
    with closing(job.place.ledger()) as ledger, leased(job, ledger):
        run = open_run(ledger, job.task.name)
        if run is None:
            for folder in (job.folder / "runs").glob("*"):
                tidy(folder)  # a run that failed cannot be resumed behind a newer one
            run = ledger.start(job.task.name, trigger, job.config(), code_version(), time.time())
        else:
            job.say(f"{run.id} was cut short: going on with it")
        return _carried(job, ledger, run)


def resume(job: Job, run: Run) -> Result:
    """Go on with a run that was killed or failed.

    Raises:
        Busy: the task is being run.
        StoreError: the ledger does not answer, or the run is over.
    """
    with closing(job.place.ledger()) as ledger, leased(job, ledger):
        found = ledger.run(run.id)
        if found is None or found.state not in (RunState.RUNNING, RunState.FAILED):
            raise StoreError(f"{run.id} is over: it ended {found.state if found else 'nowhere'}")
        newest = ledger.runs(found.task, 1)[0]
        if newest.id != found.id:
            raise StoreError(f"{found.id} cannot be resumed behind {newest.id}; start a new run")
        ledger.reopen(found)
        return _carried(job, ledger, found)


@contextmanager
def leased(job: Job, ledger: Ledger) -> Iterator[None]:
    """Hold the task's lease, renewed by ``Night.beat``; a holder that is dead on this machine is
    not waited for.

    Raises:
        Busy: somebody else has it.
    """
    task, owner = job.task.name, _owner()
    now = time.time()
    holder = ledger.leased(task, now)
    if holder is not None and holder != owner and _dead(holder):
        ledger.release(task, holder)
    if not ledger.lease(task, owner, now, now + LEASE_S):
        raise Busy(f"{task} is being run by {ledger.leased(task, now)}")
    try:
        yield
    finally:
        ledger.release(task, owner)


def _carried(job: Job, ledger: Ledger, run: Run) -> Result:
    with closing(job.place.registry()) as registry, closing(job.place.samples()) as samples:
        heart = _Heart(job, ledger, run)
        night = Night(job, run, ledger, registry, samples, heart.beat)
        night.folder.mkdir(parents=True, exist_ok=True)
        _sweep(job, night.folder)
        wanted = job.task.distill
        with heart, executor_of(wanted.executor, wanted.ray_address) as executor:
            night.executor = executor
            result = _stages(night)
        try:
            write_report(night, result.state.value, result.reason)
        except (OSError, ValueError, KeyError) as error:  # the decision stands without its picture
            job.say(f"no report: {error}")
        if result.state is not RunState.FAILED:
            tidy(night.folder)
        return result


def _sweep(job: Job, folder: Path) -> None:
    """Half-written folders of a run that was killed: what is whole has its name by one rename."""
    for place in (job.folder, job.folder / "routers", folder):
        for half in (*place.glob("v*.*"), *place.glob("trial-v*.*")):
            if half.is_dir():
                shutil.rmtree(half, ignore_errors=True)


def _stages(night: Night) -> Result:
    run, ledger = night.run, night.ledger
    done = {s.name: s for s in ledger.stages(run.id) if s.state is StageState.DONE}
    name = ""
    try:
        for name, stage in STAGES.items():
            known = done.get(name)
            if known is not None and known.outputs is not None and night.whole(known.outputs):
                night.outputs[name] = known.outputs
                continue
            night.beat()
            _run_stage(night, name, stage)
    except Refused as end:
        night.outputs[name] = end.facts
        return _ended(night, RunState.REFUSED, end.reason, name)
    except Ended as end:
        night.outputs[name] = {"reason": end.reason}
        return _ended(night, _ENDS[end.state], end.reason, name)
    except Cancelled:
        _drop_candidates(night)
        return _ended(night, RunState.CANCELLED, "cancelled by an operator")
    except LeaseLost:
        raise
    except Exception as error:  # whatever a stage dies of is the run's end, and said
        why = f"{name}: {type(error).__name__}: {error}"
        ledger.fail_stage(run, name, str(error), time.time())
        return _ended(night, RunState.FAILED, why)
    student = str(night.outputs["promote"]["student"])
    return _ended(night, RunState.PROMOTED, f"{student} serves: {_why(night)}")


def _run_stage(night: Night, name: str, stage: Stage) -> None:
    before = {n: {k: v for k, v in o.items() if "sha256" in k or k == "files"}
              for n, o in night.outputs.items()}  # fmt: skip
    night.stage = name
    night.ledger.begin_stage(night.run, name, before, time.time())
    night.job.say(f"{night.run.id}: {name}")
    found = stage(night)
    night.ledger.end_stage(night.run, name, found, time.time())
    night.outputs[name] = found


def _why(night: Night) -> str:
    certificate = night.outputs["recalibrate"]["certificate"]
    return (
        f"certified on {certificate['n']} of {certificate['rows']} draws with {certificate['k']} "
        f"disagreements, coverage {certificate['coverage']:.1%}"
    )


def _ended(night: Night, state: RunState, reason: str, last: str | None = None) -> Result:
    stage = (last, night.outputs[last]) if last is not None else None
    night.ledger.end(night.run, state, reason, time.time(), stage)
    night.job.say(f"{night.run.id}: {state.value}: {reason}")
    return Result(night.run, state, reason)


def _drop_candidates(night: Night) -> None:
    for version in night.registry.versions(night.job.task.name):
        open_ = version.state in (VersionState.PLANNED, VersionState.TRAINED)
        if version.run == night.run.id and open_:
            night.registry.judged(version.name, VersionState.REFUSED)


class _Heart:
    """Renews the lease in a thread; the run hears at its next beat that it was lost or is to
    stop."""

    def __init__(self, job: Job, ledger: Ledger, run: Run) -> None:
        self._job = job
        self._ledger = ledger
        self._run = run
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self) -> None:
        """Go on, or hear why not.

        Raises:
            Cancelled: somebody asked for it.
            LeaseLost: somebody else may run.
        """
        if self._lost:
            raise LeaseLost(f"{self._run.id}: the lease went to another process")
        found = self._ledger.run(self._run.id)
        if found is not None and found.cancel:
            raise Cancelled

    def _renew(self) -> None:
        until = time.monotonic() + LEASE_S
        while not self._stop.wait(BEAT_S):
            now = time.time()
            try:
                kept = self._ledger.lease(self._job.task.name, _owner(), now, now + LEASE_S)
            except StoreError:
                kept = time.monotonic() < until
            else:
                until = time.monotonic() + LEASE_S
            if not kept:
                self._lost = True
                return


def _owner() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _dead(owner: str) -> bool:
    """Whether a holder of this machine is no more."""
    host, _, pid = owner.rpartition("/")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
