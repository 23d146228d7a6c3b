"""Early stopping of a language-model student: by agreement on dev rows, not by loss.

Loss goes on falling long after answers have stopped getting better; what counts is whether the
answers agree with the teacher's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.folders import new_file
from router.rows import Row, StudentAnswer, usable

ROWS = 128
BATCH = 16
PATIENCE = 1
"""Epochs without a better agreement before training stops."""


@dataclass(slots=True)
class Best:
    """The best epoch so far, on disk, so that a resumed training knows it."""

    folder: Path
    epoch: float = 0.0
    agreement: float = -1.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def at(cls, folder: Path) -> Best:
        """What an earlier process left, or nothing."""
        found = cls(folder)
        note = folder / "best.json"
        if note.is_file() and (folder / "best.safetensors").is_file():
            raw = json.loads(note.read_bytes())
            found.epoch, found.agreement = raw["epoch"], raw["agreement"]
            found.curve = raw["curve"]
        return found

    def saw(self, epoch: float, agreement: float, weights: dict[str, Any]) -> bool:
        """Note an epoch; whether it is the best one, which is kept."""
        from safetensors.torch import save_file

        better = agreement > self.agreement
        self.curve = [p for p in self.curve if p["epoch"] < epoch]
        self.curve.append({"epoch": round(epoch, 3), "dev_agreement": round(agreement, 5)})
        self.folder.mkdir(parents=True, exist_ok=True)
        if better:
            self.epoch, self.agreement = epoch, agreement
            with new_file(self.folder / "best.safetensors") as new:
                save_file({k: v.contiguous().cpu() for k, v in weights.items()}, new)
        note = {"epoch": self.epoch, "agreement": self.agreement, "curve": self.curve}
        with new_file(self.folder / "best.json") as new:
            new.write_text(json.dumps(note))
        return better

    def weights(self) -> dict[str, Any]:
        """The best epoch's adapter."""
        from safetensors.torch import load_file

        found: dict[str, Any] = load_file(self.folder / "best.safetensors")
        return found


def dev_callback(
    tokenizer: Any,
    dev: Sequence[Row],
    agrees: Callable[[str, str], bool],
    best: Best,
    max_tokens: int,
) -> Any:
    """A callback of transformers' Trainer that measures after each epoch, and stops."""
    import torch
    from peft import get_peft_model_state_dict
    from transformers import TrainerCallback

    class DevAgreement(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
        ) -> None:
            model.eval()
            with torch.no_grad():
                said = generated(model, tokenizer, dev[:ROWS], max_tokens)
            model.train()
            right = [
                row.student is not None and usable(row.student)
                and agrees(row.student.text, row.completion or "")
                for row in said
            ]  # fmt: skip
            agreement = sum(right) / len(right)
            best.saw(float(state.epoch), agreement, get_peft_model_state_dict(model))
            if state.epoch - best.epoch >= PATIENCE:
                control.should_training_stop = True

    return DevAgreement()


def generated(model: Any, tokenizer: Any, rows: Sequence[Row], max_tokens: int) -> list[Row]:
    """The rows with the model's greedy answers; an answer that does not end is none."""
    import torch

    tokenizer.padding_side = "left"  # a decoder continues at the right end
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    found: list[Row] = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in row.messages],
                add_generation_prompt=True, tokenize=False,
            )
            for row in part
        ]  # fmt: skip
        inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        # LoRA's own weights are in single precision whichever the model is in.
        half = model.dtype == torch.bfloat16
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half):
            out = model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        width = inputs["input_ids"].shape[1]
        for row, ids in zip(part, out, strict=True):
            ended = tokenizer.eos_token_id in ids[width:].tolist()
            text = tokenizer.decode(ids[width:], skip_special_tokens=True)
            answer = StudentAnswer(text, (), "stop" if ended else "length")
            found.append(replace(row, student=answer))
    return found
