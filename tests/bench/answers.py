"""Ask the real student about held-out traffic, once: ``python -m tests.bench.answers``.

Writes ``tests/data/heldout/answers.jsonl.gz``: CLINC150 test utterances in the demo's mix,
Banking77 and open-ended chat prompts, and attacks. The benchmark of the router then needs no vLLM.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from deploy.demo.processes import Children
from deploy.demo.task import OUT_OF_SCOPE, SEED, SYSTEM, TASK, load, messages, traffic
from deploy.demo.vllm import VllmSettings, load_adapter, start_vllm, vllm_ready
from distill.answers import StudentEndpoint, with_student_answers
from router.rows import Row, read_rows, student_json, write_rows
from router.template import Message
from tests.bench.attack import attacks
from tests.fakes.process import free_port
from tests.fakes.rig import ARTEFACTS, ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON

CLINC150 = ROOT / "tests/data/clinc150"
OUT = ROOT / "tests/data/heldout/answers.jsonl.gz"
MIXED, BANKING, OPEN, EACH_ATTACK = 1800, 300, 300, 40
LONGEST = 4000
"""Characters; the student's window is 2,048 tokens. Longer attacks have no answer to keep."""


def heldout(shared: Path) -> list[Row]:
    """The prompts, without answers. ``completion`` is the teacher's: the label, or none of the
    task's for everything that only the teacher can answer."""
    rng = random.Random(SEED)
    rows = []
    for utterance in traffic(CLINC150, MIXED):
        chat = tuple(Message(m["role"], m["content"]) for m in messages(utterance, rng))
        rows.append(Row(chat, utterance.label, slice=utterance.slice))
    banking = read_rows(shared / "banking77/test.jsonl.gz")
    rows += [_outside(row.text, "banking77", rng) for row in rng.sample(banking, BANKING)]
    chat_rows = read_rows(shared / "chat/open_prompts.jsonl.gz")
    texts = [row.text for row in chat_rows if 0 < len(row.text) <= LONGEST]
    rows += [_outside(text, "open", rng) for text in rng.sample(texts, OPEN)]
    short = [text for text in texts if len(text) < 200]
    domain = [u.text for u in load(CLINC150, "test") if u.slice == "in_domain"]
    for family, text in attacks(short, domain, EACH_ATTACK, SEED):
        rows.append(_outside(text, f"attack:{family}", rng))
    return rows


def _outside(text: str, part: str, rng: random.Random) -> Row:
    system = (Message("system", SYSTEM),) if rng.random() < 0.5 else ()
    return Row((*system, Message("user", text)), OUT_OF_SCOPE, slice=part)


def main() -> int:
    """Start vLLM, ask, write."""
    rows = heldout(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT.parent / "shared/data"))
    asked = [row for row in rows if len(row.text) <= LONGEST]
    with Children(ROOT / "var/bench") as children:
        settings = VllmSettings(STUDENT_PYTHON, BASE, free_port())
        vllm_ready(start_vllm(children, settings), settings)
        load_adapter(settings, f"{TASK}@v1", ARTEFACTS / "student/v1")
        endpoint = StudentEndpoint(settings.url, f"{TASK}@v1")
        counted = iter(range(1, len(asked) + 1))
        answered = asyncio.run(
            with_student_answers(
                asked, endpoint, lambda: print(f"\r{next(counted)}/{len(asked)}", end="")
            )
        )
    long = [row for row in rows if len(row.text) > LONGEST]
    write_rows(OUT, map(_json, [*answered, *long]))
    print(f"\n{OUT}: {len(rows)} rows")
    return 0


def _json(row: Row) -> dict[str, object]:
    found: dict[str, object] = {
        "messages": [{"role": m.role, "content": m.content} for m in row.messages],
        "completion": row.completion,
        "slice": row.slice,
    }
    if row.student is not None:
        found["student"] = student_json(row.student)
    return found


if __name__ == "__main__":
    sys.exit(main())
