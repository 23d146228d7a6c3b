"""Train one student version: a LoRA adapter on the base model, by TRL and PEFT.

The folder that comes out is immutable: adapter weights in bf16, tokenizer-independent, with a
``manifest.json`` that pins base model, chat template, data, seed, code settings and metrics.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.dev_agreement import Best, dev_callback
from distill.digest import file_sha256, lines_sha256
from distill.memory import MemoryTooSmall, planned
from distill.precision import training_dtype
from router.comparator import plain_comparator
from router.folders import new_folder
from router.rows import Row

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the weights besides the data."""

    rank: int = 8
    alpha: int = 16
    epochs: float = 3.0
    learning_rate: float = 8e-4
    batch_size: int = 16
    warmup_ratio: float = 0.05
    seed: int = 20261124
    max_tokens: int = 64
    comparator: str = "label"


@dataclass(frozen=True, slots=True)
class Effort:
    """What else a training may use. ``dev`` rows say which epoch is the best one, and which of
    the ``rates`` (factors of the learning rate) where ``minutes`` leave time for more than one;
    ``work`` keeps checkpoints, from which a training that was killed goes on."""

    dev: Sequence[Row] = ()
    work: Path | None = None
    minutes: float | None = None
    rates: tuple[float, ...] = (1.0, 0.5)


class TrainingRefused(Exception):
    """The data or the base model cannot give a sound student."""


def train_student(
    name: str,
    rows: list[Row],
    base: Path,
    out: Path,
    settings: TrainSettings,
    effort: Effort = Effort(),
) -> dict[str, Any]:
    """Train ``name`` (``task@vN``) and write it to ``out``; return its manifest.

    Rows longer than the base model's context are left out: cut short, an answer would teach never
    to end.

    Raises:
        TrainingRefused: ``out`` exists, rows lack completions, none fits into the model's context
            or into memory, or prompt and completion do not meet at a token boundary (the model
            would learn on other tokens than it is served).
    """
    if out.exists():
        raise TrainingRefused(f"{out}: a student version is immutable and this one exists")
    lesson = _within_context([_example(row) for row in rows], base)
    with new_folder(out) as staging:
        started = time.monotonic()
        tried = _search(lesson, base, staging, settings, effort)
        best = max(tried, key=lambda fit: fit.agreement)
        best.keep(staging)
        chosen = replace(settings, learning_rate=best.learning_rate)
        manifest = _manifest(name, lesson.examples, base, staging, chosen)
        manifest["metrics"] = {
            **best.metrics,
            "tried": [fit.told for fit in tried] if len(tried) > 1 else None,
            "too_long": len(rows) - len(lesson.examples),
            "dev_rows": len(effort.dev),
            "train_seconds": round(time.monotonic() - started, 1),
        }
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors writes for its owner alone; vLLM may be another user
    return manifest


def _example(row: Row) -> dict[str, Any]:
    if row.completion is None:
        raise TrainingRefused(f"row without a completion: {row.text[:60]!r}")
    return {
        "prompt": [{"role": m.role, "content": m.content} for m in row.messages],
        "completion": [{"role": "assistant", "content": row.completion}],
    }


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What is learned, and the tokens of its longest example and its longest answer."""

    examples: list[dict[str, Any]]
    longest: int
    answer: int


@dataclass(frozen=True, slots=True)
class _Fit:
    """One training of a search: its folder, and how it did on dev rows."""

    folder: Path
    learning_rate: float
    agreement: float
    metrics: dict[str, Any]

    @property
    def told(self) -> dict[str, float]:
        """For the manifest."""
        return {"c": self.learning_rate, "dev_agreement": round(self.agreement, 5)}

    def keep(self, out: Path) -> None:
        """Move the adapter to where the version lies."""
        for path in self.folder.iterdir():
            if path.is_file():
                shutil.move(path, out / path.name)
        for fit in out.glob("fit-*"):
            shutil.rmtree(fit)


def _search(
    lesson: _Lesson, base: Path, out: Path, settings: TrainSettings, effort: Effort
) -> list[_Fit]:
    """The learning rate as it is, then others while the time allows one more of the same length.
    Without dev rows there is nothing to choose by."""
    started, found = time.monotonic(), list[_Fit]()
    rates = effort.rates if effort.dev and effort.minutes is not None else effort.rates[:1]
    for number, rate in enumerate(rates):
        spent = time.monotonic() - started
        if found and (spent / len(found) + spent) / 60 > (effort.minutes or 0.0):
            break
        folder = out / f"fit-{number}"
        folder.mkdir()
        work = effort.work / f"fit-{number}" if effort.work is not None else None
        tuned = replace(settings, learning_rate=rate * settings.learning_rate)
        found.append(_fit(lesson, base, folder, tuned, effort.dev, work))
    return found


def _fit(
    lesson: _Lesson,
    base: Path,
    out: Path,
    settings: TrainSettings,
    dev: Sequence[Row],
    work: Path | None,
) -> _Fit:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    set_seed(settings.seed)
    if torch.cuda.is_available():
        _reproducible_on_gpu()
    tokenizer = AutoTokenizer.from_pretrained(base)
    _assert_boundary(tokenizer, lesson.examples)
    dtype = training_dtype()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    work = work or out / "checkpoints"
    last = get_last_checkpoint(str(work)) if work.is_dir() else None
    try:
        through = planned(
            model, lesson.longest, lesson.answer, settings.batch_size, work / "passes.json",
            last is not None,
        )  # fmt: skip
    except MemoryTooSmall as error:
        raise TrainingRefused(str(error)) from error
    best = Best.at(work / "best")
    config = SFTConfig(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=through.at_once,
        gradient_accumulation_steps=through.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=through.checkpointing,
        max_length=None,
        logging_steps=10,
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_pin_memory=False,
        train_sampling_strategy="group_by_length",
    )
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        # Dropout on 210 small CPU ops cost 0.4 s of a 2.6 s step; three epochs do not need it.
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    trainer = _completion_trainer(SFTTrainer)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(lesson.examples),
        processing_class=tokenizer,
        peft_config=lora,
    )
    if dev:
        agrees = plain_comparator(settings.comparator)
        measuring = AutoTokenizer.from_pretrained(base)  # padded on the other side
        trainer.add_callback(dev_callback(measuring, dev, agrees, best, settings.max_tokens))
    result = trainer.train(resume_from_checkpoint=last)
    if dev and best.agreement >= 0:
        set_peft_model_state_dict(trainer.model, best.weights())
    trainer.model.to(torch.bfloat16).save_pretrained(out)
    shutil.rmtree(work, ignore_errors=True)
    (out / "README.md").unlink(missing_ok=True)
    losses = [
        {"step": entry["step"], "loss": round(entry["loss"], 5)}
        for entry in trainer.state.log_history if "loss" in entry
    ]  # fmt: skip
    metrics: dict[str, Any] = {
        "train_loss": round(float(result.training_loss), 5), "loss_curve": losses,
        "rows_at_once": through.at_once, "checkpointing": through.checkpointing,
        "precision": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    if dev:
        metrics |= {
            "dev_agreement": round(best.agreement, 5), "best_epoch": round(best.epoch, 2),
            "epochs": best.curve,
        }  # fmt: skip
    return _Fit(out, settings.learning_rate, best.agreement, metrics)


def _reproducible_on_gpu() -> None:
    """The same data and seed give the same weights on the same kind of GPU, which cuBLAS and some
    of torch's kernels do not promise by themselves (PyTorch's notes on reproducibility)."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def _completion_trainer(sft_trainer: Any) -> Any:
    """SFTTrainer whose loss evaluates the language-model head at completion positions only.

    The vocabulary projection (576 x 49,152) is a fifth of this model's arithmetic; completions
    are a sixth of the tokens. TRL's chunked kernel runs eagerly on a CPU and took 1.0 s a step
    where this takes under 0.1 s.
    """
    import torch
    from torch.nn.functional import cross_entropy

    class CompletionTrainer(sft_trainer):  # type: ignore[misc]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            base = self.accelerator.unwrap_model(model).get_base_model()
            hidden = base.model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            ).last_hidden_state
            targets = inputs["labels"][:, 1:]
            kept = targets != -100
            logits = base.lm_head(hidden[:, :-1][kept]).to(torch.float32)
            if self.current_gradient_accumulation_steps > 1:
                # Every token of the batch counts the same, in whichever pass it comes.
                loss = cross_entropy(logits, targets[kept], reduction="sum") / num_items_in_batch
            else:
                loss = cross_entropy(logits, targets[kept])
            return (loss, {"logits": logits}) if return_outputs else loss

    return CompletionTrainer


def _within_context(examples: list[dict[str, Any]], base: Path) -> _Lesson:
    """The examples that the model can read to their end.

    Raises:
        TrainingRefused: it is none of them.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    context = int(AutoConfig.from_pretrained(base).max_position_embeddings)
    kept, longest, answer = list[dict[str, Any]](), 0, 0
    for example in examples:
        chat = example["prompt"] + example["completion"]
        whole = len(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"])
        if whole <= context:
            kept.append(example)
            said = tokenizer(example["completion"][0]["content"])["input_ids"]
            longest, answer = max(longest, whole), max(answer, len(said))
    if not kept:
        raise TrainingRefused(f"no row fits into the base model's context of {context} tokens")
    return _Lesson(kept, longest, answer)


def _assert_boundary(tokenizer: Any, examples: list[dict[str, Any]]) -> None:
    """Tokenising the prompt alone must give a prefix of tokenising prompt and completion."""
    for example in examples[:64]:
        prompt = tokenizer.apply_chat_template(
            example["prompt"], add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer.apply_chat_template(
            example["prompt"] + example["completion"], tokenize=False
        )
        head = tokenizer(prompt)["input_ids"]
        if tokenizer(whole)["input_ids"][: len(head)] != head:
            raise TrainingRefused(
                "prompt and completion do not meet at a token boundary: "
                + example["prompt"][-1]["content"][:60]
            )


def _manifest(
    name: str, examples: list[dict[str, Any]], base: Path, out: Path, settings: TrainSettings
) -> dict[str, Any]:
    config = json.loads((out / "adapter_config.json").read_text())
    # The path of the machine that trained is no property of the student.
    base_manifest = json.loads((base / "understudy-base.json").read_text())
    config["base_model_name_or_path"] = base_manifest["name"]
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    template = (base / "chat_template.jinja").read_bytes()
    return {
        "format": "understudy-student/1",
        "name": name,
        "base": base_manifest,
        "chat_template_sha256": hashlib.sha256(template).hexdigest(),
        "rows": len(examples),
        "data_sha256": lines_sha256(json.dumps(e, sort_keys=True) for e in examples),
        "settings": asdict(settings),
        "files": {
            path.name: file_sha256(path)
            for path in sorted(out.iterdir())
            if path.name in {"adapter_config.json", "adapter_model.safetensors"}
        },
    }
