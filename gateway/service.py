"""Everything one process holds: tasks, store, connections. Opened and closed as one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

from gateway import catalogue
from gateway.admin import Admin
from gateway.allowance import Allowances
from gateway.api.chat import parse_chat
from gateway.api.completions import parse_completions
from gateway.api.embeddings import parse_embeddings
from gateway.api.request import Api, ApiRequest
from gateway.api.responses import parse_responses
from gateway.auditor import Auditor
from gateway.auth import AdminKey, Keyring, Principal
from gateway.background import Ground, kept
from gateway.books import Books, not_stored
from gateway.build import build_tasks
from gateway.capture import Capture
from gateway.config_file import place_of
from gateway.deployer import Deployer
from gateway.errors import ConfigError, GatewayError
from gateway.feedback import FeedbackDesk
from gateway.flow import Flow
from gateway.histories import Histories
from gateway.http1 import Pool
from gateway.ids import new_id
from gateway.incoming import Incoming
from gateway.load import LagMeter, Load
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.passthrough import Passthrough
from gateway.readings import Readings
from gateway.refine import Refiner
from gateway.reload import Source, read_again, take_over
from gateway.replays import Replays
from gateway.scrub import end_user_of
from gateway.settings import Config
from gateway.sharing import Sharer
from gateway.store.opening import set_aside
from gateway.store.sqlite import SqliteStore
from gateway.store_figures import LedgerReader
from gateway.student_side import StudentSide
from gateway.sweeping import Sweeper
from gateway.tasks import DEFAULT_TASK, TaskRuntime, Tasks
from gateway.teacher_side import TeacherSide
from gateway.trace import Tracer
from gateway.turn import Reply, Route, Turn
from gateway.upstream import monotonic
from gateway.wishes import read_wishes
from gateway.workers import Reloader, Worker, logged, stopped
from gateway.writer import BUSY_S
from router.encoder import Encoders

STORE_THREADS = 4
_PARSERS: Mapping[Api, Callable[[bytes], ApiRequest]] = {
    Api.CHAT: parse_chat,
    Api.COMPLETIONS: parse_completions,
    Api.RESPONSES: parse_responses,
}
SHIPPING_S = 5.0
JUDGING_THREADS = 2
"""Threads for the sentence encoder, which releases the interpreter's lock while it computes."""


def _tracing(config: Config, secrets: Mapping[str, str]) -> Callable[[], Tracer] | None:
    """How to begin tracing, if it is asked for."""
    wanted = config.telemetry
    if wanted is None:
        return None
    try:
        from gateway.tracing import OtlpTracer
    except ImportError as error:
        raise ConfigError([f"telemetry: needs understudy[otel]: {error}"]) from error
    headers = secrets[wanted.headers_env] if wanted.headers_env else None
    return lambda: OtlpTracer(wanted, headers)


def _conversation(principal: Principal, asked: ApiRequest) -> str:
    """What stays with one arm of a canary: an application's end user, else a conversation."""
    first = next((m.content for m in asked.messages if m.role == "user"), "")
    return f"{principal.name}|{end_user_of(asked.body) or first}"


class Service:
    """The gateway's state. ``async with`` opens store, connections and background work."""

    flow: Flow
    passthrough: Passthrough
    auditor: Auditor
    admin: Admin
    histories: Histories
    feedback: FeedbackDesk
    readings: Readings
    deployer: Deployer
    _figures: LedgerReader

    def __init__(
        self,
        config: Config,
        secrets: Mapping[str, str],
        rng: random.Random | None = None,
        encoders: Encoders | None = None,
        *,
        first: bool = True,
    ) -> None:
        """Load judges and keys; ``encoders`` are shared where several services live in a process.
        Only the ``first`` of several workers asks for second answers and probes the teacher.

        Raises:
            ConfigError: an artefact cannot be used with this configuration.
            StoreError: the store cannot be opened.
        """
        self.config = config
        self.metrics = Metrics()
        self._keyring = Keyring(config.keys, secrets)
        self._secrets = secrets
        self._first = first
        self.tasks = Tasks(config, build_tasks(config, secrets, encoders))
        self._rng = rng or random.Random()
        self.draining = False
        """Whether ``/readyz`` says so; requests are still taken until ``closing``."""
        self.closing = False
        self.load = Load()
        self.lag = LagMeter(self.metrics, self._sample)
        self.allowances = Allowances()
        self.replays = Replays()
        self.reload_wanted = asyncio.Event()
        self.source: Source | None = None
        """Reads configuration and secrets again; None where there is no file to read."""
        self._begin_tracing = _tracing(config, secrets)
        self._tracer: Tracer | None = None
        self._stack = contextlib.AsyncExitStack()
        self._place = place_of(config, secrets)
        self._encoders = encoders
        # Opening waits longer than a write may: after a crash somebody repairs the file first.
        self._writer = SqliteStore.open(self._place.path)
        self._writer.wait_at_most(BUSY_S)
        self.metrics.take_up(self._writer.totals())

    async def __aenter__(self) -> Self:
        stack = self._stack
        if self._begin_tracing is not None:
            self._tracer = self._begin_tracing()
            stack.push_async_callback(self._tracer.close)
        capture = Capture(self._writer, self.config.outbox, self.metrics)
        capture.start()
        stack.push_async_callback(capture.close)
        place = self._place
        reader = kept(stack, place.reader())
        pool = await stack.enter_async_context(Pool())
        books = Books(capture, self.metrics, asyncio.Event(), asyncio.Event(), self.allowances)
        judging = Offload(stack.enter_context(ThreadPoolExecutor(JUDGING_THREADS, "judge")))
        refiner = Refiner(judging, books)
        self.flow = Flow(
            StudentSide(pool, books, refiner),
            TeacherSide(pool, books, self._rng),
            books,
            refiner,
            self._rng,
        )
        self.passthrough = Passthrough(pool, self.tasks.default, books)
        audits = kept(stack, place.audits())
        threads = stack.enter_context(ThreadPoolExecutor(STORE_THREADS, "store"))
        offload = Offload(threads)
        self.auditor = Auditor(self.tasks, audits, self.metrics, books.wake_audit, offload)
        for task in self.tasks:  # a gate that an audit closed is closed from the first request on
            await self.auditor.look(task)
        catalogue.announce(self.tasks, self.metrics)
        self.metrics.store_set_aside.set(len(set_aside(place.path)))
        own = kept(stack, SqliteStore.read_only(place.path)) if place.shared else reader
        self.histories = Histories([own, reader] if place.shared else [reader], offload)
        ground = Ground(
            self.tasks, place, self.metrics, pool, books, self.auditor, offload, stack,
            self._first,
        )  # fmt: skip
        self.deployer, following = ground.students(
            lambda: self.config, lambda: self._secrets, self._encoders
        )
        await self.deployer.look()
        self._figures = ground.figures()
        access = kept(stack, place.access())
        sharer = Sharer(self.allowances, access, self.metrics, offload)
        keeping = kept(stack, place.keeping())
        sweeper = Sweeper(self.tasks, keeping, self.metrics, offload)
        said = kept(stack, place.feedback())
        self.feedback = FeedbackDesk(
            self.tasks, said, self.metrics, offload, SHIPPING_S if place.shared else 0.0
        )
        self.readings = Readings(reader, keeping, offload)
        await sharer.share()  # what was spent before a restart counts from the first request on
        workers: list[Worker] = [
            self.auditor,
            sharer,
            self.lag,
            Reloader(self.reload_wanted, self.reload),
            *following,
            *ground.second_answers(reader, capture),
            *ground.shipping(),
        ]
        if self._first:
            workers.append(sweeper)
        # Between the workers and the connections: a thread that a cancelled worker left must be
        # done with a connection before it is closed.
        stack.callback(threads.shutdown)
        for worker in workers:
            stack.push_async_callback(stopped, asyncio.create_task(logged(worker)))
        self._make_admin()
        return self

    def _make_admin(self) -> None:
        if self.config.admin is not None:
            key = AdminKey(self._secrets[self.config.admin.key_env])
            self.admin = Admin(self.tasks, self.auditor, key, self.readings, self.deployer)

    async def reload(self) -> list[str]:
        """Read the configuration again and take it over, all of it or, where anything is wrong,
        nothing.

        Returns:
            What is wrong, one line per mistake; empty when the new configuration is in force.
        """
        if self.source is None:
            return ["there is no file to read again"]
        try:
            fresh = await read_again(self.source, self.config, self.tasks)
        except ConfigError as error:
            self.metrics.reloads.labels("refused").inc()
            log("reload_refused", problems=error.problems)
            return error.problems
        tasks = fresh.tasks
        for task in tasks:
            take_over(self.tasks.get(task.name), task)
        tasks = [
            await self.deployer.taken_over(settings, task)
            for settings, task in zip(fresh.config.tasks, tasks, strict=True)
        ]
        for task in tasks:
            if task.standing is None:  # no request may meet a gate that nobody looked at
                await self.auditor.look(task)
        catalogue.forget_gone(self.tasks, tasks, self.metrics)
        self.config, self._secrets = fresh.config, fresh.secrets
        self._keyring = Keyring(fresh.config.keys, fresh.secrets)
        self.tasks.replace(fresh.config, tasks)
        self.passthrough = replace(self.passthrough, default=self.tasks.default)
        self._make_admin()
        catalogue.announce(self.tasks, self.metrics)
        self.metrics.reloads.labels("taken").inc()
        log("reloaded", tasks=[task.name for task in tasks], needs_restart=fresh.fixed)
        return []

    async def exposition(self) -> bytes:
        """Every metric, in Prometheus's text format."""
        await self._figures.look()
        self._sample()
        return self.metrics.exposition()

    def enter(self, incoming: Incoming) -> Principal:
        """Who asks, counted as in flight until ``leave``.

        Raises:
            GatewayError: the key is not known or revoked, has used what it may, or there is no
                room.
        """
        principal = self._admit(incoming)
        try:
            self.lag.check(self.config.limits.shed_lag_s)
            self.load.enter(principal, self.config.limits.max_in_flight)
            try:
                self.allowances.admit(principal, time.time())
            except GatewayError:
                self.load.leave(principal)
                raise
        except GatewayError as error:
            self.metrics.key_refusals.labels(principal.name, error.code).inc()
            raise
        return principal

    def leave(self, principal: Principal) -> None:
        """The request of ``enter`` is over."""
        self.load.leave(principal)

    def _sample(self) -> None:
        self.metrics.in_flight.set(self.load.total)
        self.metrics.queue.set(self.flow.books.capture.queued)

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()

    async def begin(self, incoming: Incoming, api: Api, principal: Principal) -> Turn:
        """Steps 1 and 2: authenticate, receive, parse, resolve.

        Raises:
            GatewayError: the request cannot be taken.
        """
        started = monotonic()
        asked = _PARSERS[api](await incoming.body(self.config.limits))
        if api is Api.RESPONSES:
            asked = await self.histories.expanded(asked, principal.name)
        task, side = self.tasks.resolve(asked.model, principal.name, asked.messages)
        self._check_access(principal, task, asked.model)
        wishes = read_wishes(incoming.headers, side)
        if wishes.route is not Route.JUDGED and not principal.may_override:
            raise GatewayError(
                "override_not_allowed",
                "This key may not choose who answers; use the task's plain name.",
            )
        if wishes.teacher_key and not task.settings.teacher.accept_client_key:
            raise GatewayError(
                "client_key_not_allowed", f"Task '{task.name}' uses its own key for the teacher."
            )
        if task.settings.capture == "strict" and self.flow.books.capture.refusing:
            raise not_stored(task.name)
        task = task.arm_for(_conversation(principal, asked)) if task.canary else task
        turn = Turn(new_id(), time.time(), started, principal, task, asked, wishes)
        if self._tracer is not None:
            turn.trace = self._tracer.begin(turn, incoming.headers)
        return turn

    async def take_feedback(self, incoming: Incoming) -> dict[str, Any]:
        """``POST /v1/feedback``: no request in the sense of a key's limits, but of a known key.

        Raises:
            GatewayError: the key is not known or revoked, or see ``FeedbackDesk.take``.
        """
        principal = self._admit(incoming)
        self.allowances.check_revoked(principal)
        return await self.feedback.take(await incoming.body(self.config.limits), principal)

    def models(self, authorization: str | None) -> dict[str, Any]:
        """``GET /v1/models``: what a key may ask for."""
        return catalogue.models(self.tasks, self._keyring.principal(authorization))

    def model(self, authorization: str | None, name: str) -> dict[str, Any]:
        """``GET /v1/models/{id}``.

        Raises:
            GatewayError: ``model_not_found``.
        """
        return catalogue.model(self.tasks, self._keyring.principal(authorization), name)

    def standing(self) -> tuple[list[str], list[str]]:
        """What keeps this process from serving, and what somebody should look at meanwhile.

        A store that takes nothing is no reason to stop: answers go out marked. Only a gateway
        whose every task is strict has nothing to serve then.
        """
        problems = ["draining"] if self.draining or self.closing else []
        if not self.flow.books.capture.refusing:
            return problems, []
        refused = "the store takes no exchange"
        if all(task.settings.capture == "strict" for task in self.tasks):
            return [*problems, refused], []
        return problems, [f"{refused}: answers are marked captured: no"]

    async def forward(self, incoming: Incoming, principal: Principal) -> Reply:
        """Hand a request on to the default upstream (``Passthrough.forward``).

        Raises:
            GatewayError: the request cannot be taken, or nobody can be reached.
        """
        if not principal.may_use(DEFAULT_TASK):
            raise GatewayError("task_not_allowed", "This key may not use paths that pass through.")
        body = await incoming.body(self.config.limits)
        if incoming.path == "/v1/embeddings":
            return await self._embeddings(parse_embeddings(body), principal)
        content_type = incoming.headers.get("content-type", "application/json")
        return await self.passthrough.forward(incoming.path, body, content_type)

    async def _embeddings(self, body: Mapping[str, Any], principal: Principal) -> Reply:
        default = self.tasks.default
        if default is None:
            raise GatewayError(
                "model_not_found",
                f"No upstream for embeddings: '{body['model']}' needs default.passthrough.",
                param="model",
            )
        return await self.passthrough.embeddings(default, principal, body)

    def _admit(self, incoming: Incoming) -> Principal:
        """Who asks, unless nobody may any more."""
        principal = self._keyring.principal(incoming.authorization)
        if self.closing:
            raise GatewayError("shutting_down", "The gateway is draining; ask another replica.")
        return principal

    @staticmethod
    def _check_access(principal: Principal, task: TaskRuntime, model: str) -> None:
        if not principal.may_use(task.name):
            raise GatewayError(
                "task_not_allowed",
                f"This key may not use the model '{model}'.",
                param="model",
            )
