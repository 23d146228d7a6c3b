"""How a training batch goes through the memory that is there.

The batch decides the weights and stays as it is; how many of its rows are computed at once, and
whether activations are kept or computed again, only decide memory and time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router.folders import new_file

SHARE = 0.8
"""Of the free memory: an estimate is none, and other work of the machine needs some."""
_KEPT, _KEPT_SINGLE = 90, 122
"""Bytes per token, hidden unit and layer: measured (``make bench-training-memory``). Korthikanti et
al. (arXiv 2205.05198) count 34 for a plain transformer in half precision; norms and LoRA's inputs
in single precision and a gated MLP come on top; the second figure is for a model that is wholly in
single precision."""
_AGAIN = 8
_AGAIN_ON_CPU, _AGAIN_SINGLE = 48, 52
"""The same where only each layer's input is kept. The C library's allocator holds on to most of
what was freed in between; a GPU's does not."""
_BESIDE = 300 * 2**20
"""Optimizer and the kernels' own room."""
_LOGITS = 14
"""Bytes per answer's token and word of the vocabulary: in half and in single precision, their
softmax, their gradient."""


class MemoryTooSmall(Exception):
    """Not even one row fits, with everything computed twice."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how much a row takes."""

    layers: int
    hidden: int
    vocabulary: int
    longest: int
    """Tokens of the longest row."""
    answer: int
    """Tokens of the longest answer."""
    gpu: bool = False
    single: bool = False
    """In single precision, as on a CPU that has no half one (``distill.precision``)."""

    def kept(self) -> int:
        """Bytes of one row's activations, all kept for the backward pass."""
        return self.layers * self._whole_layer() + self._logits()

    def checkpointed(self) -> int:
        """The same where each layer is computed again when its turn comes."""
        on_cpu = _AGAIN_SINGLE if self.single else _AGAIN_ON_CPU
        held = self.layers * self._layer(_AGAIN if self.gpu else on_cpu)
        return held + self._whole_layer() + self._logits()

    def _whole_layer(self) -> int:
        return self._layer(_KEPT_SINGLE if self.single else _KEPT)

    def _layer(self, unit: int) -> int:
        return unit * self.longest * self.hidden

    def _logits(self) -> int:
        return self.answer * self.vocabulary * _LOGITS


@dataclass(frozen=True, slots=True)
class Passes:
    """``at_once`` rows a pass, ``steps`` passes a batch."""

    at_once: int
    steps: int
    checkpointing: bool = False


def needed(at_once: int, row: int) -> int:
    """Bytes beside the model for so many rows of ``row`` bytes at once."""
    return at_once * row + _BESIDE


def passes(batch: int, shape: Shape, free: int) -> Passes:
    """The fewest passes that fit into ``free`` bytes; activations are computed again (a third more
    arithmetic) only where not one row fits otherwise.

    Raises:
        MemoryTooSmall: there is no way.
    """
    room = SHARE * free
    for checkpointing, row in ((False, shape.kept()), (True, shape.checkpointed())):
        for at_once in range(batch, 0, -1):
            if batch % at_once == 0 and needed(at_once, row) <= room:
                return Passes(at_once, batch // at_once, checkpointing)
    raise MemoryTooSmall(
        f"a row of {shape.longest} tokens needs {needed(1, shape.checkpointed()) / 2**20:.0f} MiB "
        f"beside the model, and of {free / 2**20:.0f} MiB free it may take {SHARE:.0%}"
    )


def planned(model: Any, longest: int, answer: int, batch: int, note: Path, resumed: bool) -> Passes:
    """How the batch fits into the memory that is free beside a loaded model. A training that goes
    on from a checkpoint goes on as it began, by the ``note`` that it left: its place among the
    data is counted in passes.

    Raises:
        MemoryTooSmall: there is no way.
    """
    import torch

    if resumed and note.is_file():
        return Passes(**json.loads(note.read_bytes()))
    config, gpu = model.config, torch.cuda.is_available()
    shape = Shape(
        config.num_hidden_layers, config.hidden_size, config.vocab_size, longest, answer, gpu,
        single=model.dtype == torch.float32,
    )  # fmt: skip
    # The model was loaded into this machine's memory; a GPU's has yet to take it.
    model_bytes = int(model.get_memory_footprint()) if gpu else 0
    found = passes(batch, shape, free_bytes() - model_bytes)
    note.parent.mkdir(parents=True, exist_ok=True)
    with new_file(note) as new:
        new.write_text(json.dumps(asdict(found)))
    return found


def free_bytes() -> int:
    """Free memory of the GPU, where there is one, or of this machine or container."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    return min([free, *_container_room(Path("/sys/fs/cgroup"))])


def _container_room(group: Path) -> list[int]:
    """What the container may still take (cgroup v2); nothing where it has no limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [max(0, int(limit) - used)] if limit.isdecimal() else []
