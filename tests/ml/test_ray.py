"""The same run on a Ray cluster of two nodes: the same split, training set and decision."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.digest import file_sha256
from distill.executor import ExecutorError, LocalExecutor, RayExecutor, executor_of
from distill.job import load_job
from distill.runner import Result, start
from distill.splitting import sketched
from gateway.store.ledger import RunState
from gateway.store.place import Place
from tests.fakes.process import free_port
from tests.fakes.traffic import TASK, captured, config_file, fill
from tests.ml.conftest import BASE, STUDENT_PYTHON, Vllm

# Ray's own code opens files and sockets that it leaves to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        found = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        found.add_node(num_cpus=2)
        yield found
        found.shutdown()  # type: ignore[no-untyped-call]


def run(folder: Path, student: str, **distill: Any) -> Result:
    folder.mkdir()
    fill(folder, captured(1000))
    return start(load_job(config_file(folder, student, **distill), None, lambda text: None), "t")


def facts(folder: Path) -> dict[str, Any]:
    place = Place(folder / "understudy.db")
    with contextlib.closing(place.samples()) as samples:
        splits = {id_: (s.group, s.split) for id_, s in samples.of_task(TASK).items()}
    with contextlib.closing(place.registry()) as registry:
        versions = [
            (v.name, v.data_sha256, v.state, file_sha256(v.folder / "head.safetensors"))
            for v in registry.versions(TASK)
        ]
    return {"splits": splits, "versions": versions}


@pytest.mark.timeout(600)
def test_two_nodes_decide_as_one_process_does(cluster: Any, student: str, tmp_path: Path) -> None:
    """One of the workers is killed in the middle, and its part is done again."""
    here = run(tmp_path / "here", student)
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and not killed:
            for pid in _workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        there = run(tmp_path / "there", student, executor="ray", ray_address=cluster.address)
    finally:
        over.set()
        killer.join()
    assert killed, "no worker was there to be killed"
    assert (there.state, there.reason) == (here.state, here.reason)
    assert here.state is RunState.PROMOTED
    assert facts(tmp_path / "there") == facts(tmp_path / "here")


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_language_model_is_trained_on_a_worker(
    cluster: Any, vllm: Vllm, tmp_path: Path
) -> None:
    """A few rows, one epoch: it need not be good, and its base is measured beside it."""
    fill(tmp_path, captured(240))
    path = config_file(
        tmp_path, "http://127.0.0.1:9/v1", students=["lora"], base=str(BASE),
        python=str(STUDENT_PYTHON), epochs=1.0, max_rows=48, min_rows=10, min_test_rows=10,
        max_tokens=8, executor="ray", ray_address=cluster.address,
    )  # fmt: skip
    urls = f"base_urls: [{vllm.settings.url}]\n    classifier_urls:"
    path.write_text(path.read_text().replace("classifier_urls:", urls))
    said: list[str] = []
    result = start(load_job(path, None, said.append), "t")
    place = Place(tmp_path / "understudy.db")
    with contextlib.closing(place.ledger()) as ledger:
        stages = {s.name: s for s in ledger.stages(result.run.id)}
    assert "evaluate" in stages, (result, said)
    assert set((stages["evaluate"].outputs or {})["agreement"]) == {f"{TASK}@v1", "base"}
    with contextlib.closing(place.registry()) as registry:
        (version,) = registry.versions(TASK)
    assert version.facts["rows"] == 48
    assert (version.folder / "adapter_model.safetensors").is_file()
    report = (tmp_path / f"students/{TASK}/runs/{TASK}-1/report.html").read_text()
    assert "base, untrained" in report


def _workers() -> list[int]:
    """Processes that work on a part of ours now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith((b"ray::Map", b"ray::_Map", b"ray::RayTrain")):
                found.append(int(path.parent.name))
    return found


def test_parts_come_back_in_order(cluster: Any) -> None:
    texts = [f"text number {n}" for n in range(60)]
    with executor_of("ray", cluster.address) as executor:
        assert isinstance(executor, RayExecutor)
        assert executor.spread(sketched, texts, 7) == LocalExecutor().spread(sketched, texts, 50)
        assert executor.spread(sketched, [], 7) == []


def test_a_cluster_that_is_not_there_is_said() -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(ExecutorError, match=r"distill\.ray_address"), executor_of("ray", nowhere):
        pass
