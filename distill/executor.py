"""Where a run's heavy parts are computed: in this process, or on a Ray cluster.

The stages are the same code. What is spread goes out and comes back as JSON, in order, so that both
executors give the same split, the same training set and the same answers. Source: docs.ray.io
(Ray Data ``map_batches``; Ray Train ``DataParallelTrainer`` with a ``FailureConfig``).
"""

from __future__ import annotations

import functools
import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

Item = Any
"""A JSON value."""
Work = Callable[[list[Item]], list[Item]]
"""Importable by name on every machine; idempotent, since a lost worker's part is done again."""

CONNECT_S = 5.0
FAILURES = 3
"""Workers that a training may lose."""


class ExecutorError(Exception):
    """The executor is not there, or gave up."""


class Executor(Protocol):
    """Computes parts."""

    def spread(self, work: Work, items: Sequence[Item], size: int) -> list[Item]:
        """One result for each item, in order; ``work`` gets ``size`` of them at once."""
        ...

    def alone(self, work: Callable[[Mapping[str, Any]], None], asked: Mapping[str, Any]) -> None:
        """One long piece of work that leaves its result on the shared file system."""
        ...


class LocalExecutor:
    """This process."""

    def spread(self, work: Work, items: Sequence[Item], size: int) -> list[Item]:
        """One part after another."""
        found: list[Item] = []
        for start in range(0, len(items), size):
            found += work(list(items[start : start + size]))
        return found

    def alone(self, work: Callable[[Mapping[str, Any]], None], asked: Mapping[str, Any]) -> None:
        """Here and now."""
        work(asked)


class RayExecutor:
    """A Ray cluster that ``ray.init`` has joined."""

    def spread(self, work: Work, items: Sequence[Item], size: int) -> list[Item]:
        """By Ray Data, a task for each part; a task whose worker dies is run again elsewhere."""
        import ray.data

        if not items:
            return []
        rows = [{"n": n, "item": json.dumps(item)} for n, item in enumerate(items)]
        parts = -(-len(items) // size)
        wanted: Any = functools.partial(_worked, work=work)
        found = (
            ray.data.from_items(rows, override_num_blocks=parts)
            .map_batches(wanted, batch_size=size)
            .take_all()
        )
        if len(found) != len(items):
            raise ExecutorError(f"Ray gave {len(found)} results for {len(items)} items")
        return [json.loads(row["item"]) for row in sorted(found, key=lambda row: int(row["n"]))]

    def alone(self, work: Callable[[Mapping[str, Any]], None], asked: Mapping[str, Any]) -> None:
        """By Ray Train, on one worker; one that dies is replaced, and goes on from checkpoints."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        trainer = DataParallelTrainer(
            _trained,
            train_loop_config={"work": work, "asked": json.dumps(dict(asked))},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=str(asked["name"]), storage_path=str(asked["storage"]),
                failure_config=FailureConfig(max_failures=FAILURES),
            ),
        )  # fmt: skip
        try:
            trainer.fit()
        except Exception as error:  # Ray wraps what a worker raised in classes of its own
            raise ExecutorError(f"Ray Train gave up: {error}") from error


@contextmanager
def executor_of(kind: str, address: str | None) -> Iterator[Executor]:
    """The executor of a configuration; a cluster that was joined is left at the end.

    Raises:
        ExecutorError: Ray is not installed, or no cluster answers at the address.
    """
    if kind == "local":
        yield LocalExecutor()
        return
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ExecutorError(
            "distill.executor: ray needs Ray: pip install 'understudy[ray]'"
        ) from error
    if address is not None:
        _answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ExecutorError(f"distill.ray_address: {address}: {error}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield RayExecutor()
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto"
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ExecutorError(f"distill.ray_address: {address}: {error}") from error


def _worked(batch: Mapping[str, Any], work: Work) -> dict[str, list[Any]]:
    found = work([json.loads(item) for item in batch["item"]])
    return {"n": list(batch["n"]), "item": [json.dumps(item) for item in found]}


def _trained(config: Mapping[str, Any]) -> None:
    config["work"](json.loads(config["asked"]))
