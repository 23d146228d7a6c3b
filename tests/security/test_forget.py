"""An end user who is forgotten leaves no byte: in store, log, exports and artefact."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gateway.store.place import Place
from router.artefact import load_artefact, save_artefact
from router.encoder import Encoders
from router.errors import ArtefactError
from router.forget import forget_prompts
from router.index import PromptIndex
from router.judge import Judge
from tests.fakes.answers import completion, student_says
from tests.fakes.process import gateway_process
from tests.fakes.rig import ANSWER, ARTEFACTS, FAR, IN_DOMAIN, SYSTEM, config_data, encoders
from tests.fakes.upstream import FakeUpstream, Received, Wire
from tests.wire.test_captures_cli import understudy

CANARY = "xylophone-canary-7391"


async def echoes(received: Received, wire: Wire) -> None:
    """A teacher that repeats what it is asked."""
    await wire.json(200, completion(f"you said {received.text}"))


def trained_on(folder: Path, texts: list[str]) -> Path:
    """The tests' artefact, as if it had been fitted on these prompts too."""
    known = load_artefact(ARTEFACTS / "router/v1")
    prompts = [*map(dict, known.prompts), *({"text": t, "completion": "apr"} for t in texts)]
    tensors = dict(known.tensors)
    rows = np.ones((len(texts), tensors["prompts"].shape[1]), np.float16)
    tensors["prompts"] = np.vstack([tensors["prompts"], rows])
    manifest = {k: v for k, v in known.manifest.items() if k not in {"format", "files"}}
    save_artefact(folder / "v1", manifest, tensors, prompts)
    return folder / "v1"


def traces(folder: Path) -> list[str]:
    """Files that hold the canary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("running", [True, False])
async def test_forgetting_leaves_no_byte(tmp_path: Path, running: bool) -> None:
    folder = tmp_path / "places"
    folder.mkdir()
    artefact = trained_on(folder, [f"{CANARY} number {n}" for n in range(3)])
    student, teacher = FakeUpstream(student_says(ANSWER)), FakeUpstream(echoes)
    async with student.running(), teacher.running():
        data = config_data(student.url, teacher.url, folder / "understudy.db",
                           risk={"draw_rate": 1.0}, router={"artefact": str(artefact)})  # fmt: skip
        data["keys"][0]["may_correct"] = True
        async with gateway_process(folder, data) as gateway, gateway.client() as client:
            ids = []
            for number in range(40):
                chat = [{"role": "system", "content": SYSTEM},
                        {"role": "user", "content": f"{CANARY} number {number}"}]  # fmt: skip
                body = {"model": "banking-intents", "user": "jane", "messages": chat}
                said = await client.post("/v1/chat/completions", json=body)
                ids.append(said.headers["x-request-id"])
                # Somebody else, who stays.
                body["messages"] = [{"role": "user", "content": f"{FAR} {number}"}]
                await client.post("/v1/chat/completions", json={**body, "user": "bob"})
            say = {"request_id": ids[0], "correction": CANARY, "comment": CANARY}
            assert (await client.post("/v1/feedback", json=say)).status_code == 200
            config = str(gateway.config)
            if not running:
                gateway.terminate()
                await gateway.process.wait()
            forms = {"r.jsonl": "rows", "c.jsonl": "openai", "t.parquet": "parquet"}
            for name, form in forms.items():
                out = ["--out", str(folder / name), "--format", form]
                done = await understudy("captures", "export", "--config", config, *out)
                assert done.returncode == 0, done.stderr
            # Or the test could not fail. (Parquet packs its columns; the log may hold all of it.)
            before = set(traces(folder))
            assert {"r.jsonl", "c.jsonl", "prompts.json"} <= before
            assert before & {"understudy.db", "understudy.db-wal"}
            done = await understudy("captures", "forget", "--config", config, "--user", "jane")
            assert done.returncode == 0, done.stderr
            assert "store: 40 exchanges deleted" in done.stdout
            assert "3 prompts" in done.stdout
            assert done.stdout.count("40 rows taken out") == 3
            assert "todo" not in done.stdout
            assert traces(folder) == []
            left = await understudy("captures", "list", "--config", config, "--json",
                                    "--limit", "99")  # fmt: skip
            assert len(left.stdout.splitlines()) == 40
            if running:  # and it goes on serving
                body["messages"] = [{"role": "user", "content": FAR}]
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    with contextlib.closing(Place(folder / "understudy.db").keeping()) as keeping:
        assert keeping.forgotten() == frozenset(ids)  # training sets of before forget them too
    assert pq.read_table(folder / "t.parquet").num_rows == 40
    assert len((folder / "c.jsonl").read_text().splitlines()) == 40


def test_an_artefact_forgets_and_still_judges(tmp_path: Path) -> None:
    artefact = trained_on(tmp_path, [CANARY])
    known: Encoders = encoders()
    before = Judge.load(artefact, known)
    assert forget_prompts(artefact, {"something else"}) == (0, 0)
    assert forget_prompts(artefact, {f" {CANARY} "}) == (1, 0)
    after = Judge.load(artefact, known)
    assert after.version != before.version
    assert after.artefact.manifest["forgotten"] == 1
    assert CANARY not in (artefact / "prompts.json").read_text()
    assert after.nearest(IN_DOMAIN)[0] == before.nearest(IN_DOMAIN)[0]
    with pytest.raises(ArtefactError, match="every prompt"):
        forget_prompts(artefact, {str(p["text"]) for p in after.artefact.prompts})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v1"]


def open_task(folder: Path, vectors: Any, indexed: bool) -> Path:
    """An artefact whose prompts are compared with one by one, exactly or by an index."""
    known = load_artefact(ARTEFACTS / "router/v1")
    tensors = {"prompts": vectors.astype(np.float16), "second.points": vectors.astype(np.float16)}
    if indexed:
        tensors["second.points"] = tensors["second.points"][:0]
        tensors["second.index"] = PromptIndex.fitted(vectors).state()
    manifest = {k: v for k, v in known.manifest.items() if k not in {"format", "files"}}
    manifest["classes"] = []
    prompts = [{"text": f"p{n}", "completion": "x"} for n in range(len(vectors))]
    save_artefact(folder / "open", manifest, tensors, prompts)
    return folder / "open"


@pytest.mark.parametrize("indexed", [False, True])
def test_single_prompts_leave_the_index(tmp_path: Path, indexed: bool) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder = open_task(tmp_path, vectors, indexed)
    assert forget_prompts(folder, {"p7", "p9"}) == (2, 2)
    tensors = load_artefact(folder).tensors
    assert len(tensors["prompts"]) == 58
    if indexed:
        index = PromptIndex.restored(tensors["second.index"], 32)
        assert len(index) == 58
        near = index.similarity(vectors, 1)
        assert near[7] < 0.9
        assert near[8] > 0.98
    else:
        similar = (tensors["second.points"].astype(np.float32) @ vectors.T).max(axis=0)
        assert similar[7] < 0.9
        assert similar[8] > 0.98


def test_rows_say_so_when_they_cannot_be_cleaned(tmp_path: Path) -> None:
    """A file that is gone, or not ours any more, is somebody's to look for."""
    from gateway.api.request import Api
    from gateway.forgetting import _in_exports
    from gateway.store.keeping import Asked, Export

    with contextlib.closing(Place(tmp_path / "x.db").keeping()) as keeping:
        changed = tmp_path / "changed.jsonl"
        changed.write_text("not JSON any more\n")
        keeping.add_export(Export(tmp_path / "gone.jsonl", "rows", 0.0, 1))
        keeping.add_export(Export(changed, "rows", 1.0, 1))
        told = _in_exports(keeping, [Asked("a", "t", Api.CHAT, {"messages": []})])
        assert [line.startswith("todo") for line in told] == [True, True]
        assert [export.path for export in keeping.exports()] == [changed]
        assert changed.read_text() == "not JSON any more\n"
