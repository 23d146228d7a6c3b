"""What a LoRA training takes beside the model, and what ``distill.memory`` reckons with.

Each line is a process of its own: two batches of the demo's base model on rows of one length; the
peak of its resident memory since the model was there (Linux: ``VmHWM``, proc(5)).
"""

from __future__ import annotations

import json
import subprocess
import tempfile

from tests.fakes.rig import ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON

CASES = ((4, 64, False), (16, 64, False), (4, 256, False), (16, 256, False), (2, 1024, False),
         (16, 256, True), (4, 1024, True))  # fmt: skip
"""Rows at once, about so many tokens each, activations computed again."""

_CHILD = """
import json, sys
from pathlib import Path
from unittest import mock

from distill import memory, train
from distill.memory import Passes, needed
from router.rows import Row
from router.template import Message

base, out, at_once, tokens, again = sys.argv[1:]
seen = {}


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def passes(batch, shape, free):
    Path("/proc/self/clear_refs").write_text("5")
    seen["before"] = status("VmRSS")
    row = shape.checkpointed() if again == "True" else shape.kept()
    seen["reckoned"] = needed(batch, row)
    seen["tokens"] = shape.longest
    return Passes(batch, 1, again == "True")


row = Row((Message("user", "word " * (int(tokens) - 40)),), "an answer")
settings = train.TrainSettings(epochs=1.0, batch_size=int(at_once))
with mock.patch.object(memory, "passes", passes):
    train.train_student("t@v1", [row] * (2 * int(at_once)), Path(base), Path(out), settings)
print(json.dumps(seen | {"taken": status("VmHWM") - seen["before"]}))
"""


def main() -> None:
    """Train, read, print."""
    for at_once, tokens, again in CASES:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [str(STUDENT_PYTHON), "-c", _CHILD, str(BASE), f"{folder}/v1", str(at_once),
                 str(tokens), str(again)],
                cwd=ROOT, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
        seen = json.loads(done.stdout.splitlines()[-1])
        taken, reckoned = (round(seen[key] / 2**20) for key in ("taken", "reckoned"))
        print(json.dumps({
            "rows_at_once": at_once, "tokens": seen["tokens"], "computed_again": again,
            "MiB_taken": taken, "MiB_reckoned": reckoned,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
