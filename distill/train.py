"""Train one student version: a LoRA adapter on the base model, by TRL and PEFT.

The folder that comes out is immutable: adapter weights in bf16, tokenizer-independent, with a
``manifest.json`` that pins base model, chat template, data, seed, code settings and metrics.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.digest import file_sha256, lines_sha256
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


class TrainingRefused(Exception):
    """The data or the base model cannot give a sound student."""


def train_student(
    name: str, rows: list[Row], base: Path, out: Path, settings: TrainSettings
) -> dict[str, Any]:
    """Train ``name`` (``task@vN``) and write it to ``out``; return its manifest.

    Raises:
        TrainingRefused: ``out`` exists, rows lack completions, or prompt and completion do not
            meet at a token boundary (the model would learn on other tokens than it is served).
    """
    if out.exists():
        raise TrainingRefused(f"{out}: a student version is immutable and this one exists")
    examples = [_example(row) for row in rows]
    with new_folder(out) as staging:
        started = time.monotonic()
        loss = _fit(examples, base, staging, settings)
        manifest = _manifest(name, examples, base, staging, settings)
        manifest["metrics"] = {
            "train_loss": round(loss, 5),
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


def _fit(examples: list[dict[str, Any]], base: Path, out: Path, settings: TrainSettings) -> float:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    _assert_boundary(tokenizer, examples)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = SFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=512,
        logging_steps=10,
        save_strategy="no",
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
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=lora,
    )
    result = trainer.train()
    trainer.model.to(torch.bfloat16).save_pretrained(out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    (out / "README.md").unlink(missing_ok=True)
    return float(result.training_loss)


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
            loss = cross_entropy(logits, targets[kept])
            return (loss, {"logits": logits}) if return_outputs else loss

    return CompletionTrainer


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
