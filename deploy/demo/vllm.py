"""Start vLLM with the reference student: the recipe, in one place."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import httpx

from deploy.demo.processes import Child, Children, wait_ready

START_TIMEOUT_S = 300.0
_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_CPU = ("--enforce-eager",)
"""Compiling takes longer than this model gains by it on a CPU."""
_GPU = ("--gpu-memory-utilization", "0.4")
"""By default vLLM takes nearly all of the memory, and a nightly training would find none left."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Where vLLM's environment and the base model are, and where it listens."""

    python: Path
    base: Path
    port: int

    @property
    def url(self) -> str:
        """Base URL of its API."""
        return f"http://127.0.0.1:{self.port}/v1"


def start_vllm(children: Children, settings: VllmSettings) -> Child:
    """Start the server, of a GPU build where there is a GPU; ``vllm_ready`` waits for it."""
    on_gpu = shutil.which("nvidia-smi") is not None
    dtype = "bfloat16" if on_gpu else cpu_dtype(Path("/proc/cpuinfo"))
    command = [
        str(settings.python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(settings.base), "--served-model-name", "student",
        "--host", "127.0.0.1", "--port", str(settings.port),
        "--dtype", dtype, "--max-model-len", "2048", "--max-num-seqs", "16",
        "--enable-lora", "--max-lora-rank", "16", "--max-loras", "4",
        *(_GPU if on_gpu else _CPU),
    ]  # fmt: skip
    # vLLM looks for compilers and libraries through PATH; the parent's Python settings would leak.
    env = {**_ENV, "PATH": f"{settings.python.parent}:{os.environ.get('PATH', '')}"}
    # Its threads fill every core; what answers in microseconds must not queue behind them.
    return children.start("vllm", command, env, nice=5)


def cpu_dtype(cpuinfo: Path) -> str:
    """The precision that a CPU serves fastest: bfloat16, for which an x86 one needs AVX-512.

    Without, torch multiplies bfloat16 element by element: 0.5 answers a second at eight requests at
    once, where single precision gives 1.1 (``tests/bench/README.md``).
    """
    found = cpuinfo.read_text() if cpuinfo.is_file() else ""
    flags = next((line for line in found.splitlines() if line.startswith("flags")), None)
    return "float32" if flags is not None and "avx512f" not in flags.split() else "bfloat16"


def vllm_ready(child: Child, settings: VllmSettings) -> float:
    """Wait until vLLM answers; returns seconds.

    Raises:
        ProcessDied: it ended or took too long.
    """
    return wait_ready(child, f"http://127.0.0.1:{settings.port}/health", START_TIMEOUT_S)


def load_adapter(settings: VllmSettings, name: str, folder: Path) -> None:
    """Load a student version and let it answer once: the first request compiles for seconds."""
    with httpx.Client(base_url=settings.url, timeout=180.0) as client:
        client.post(
            "/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder.resolve())}
        ).raise_for_status()
        client.post(
            "/chat/completions",
            json={"model": name, "messages": [{"role": "user", "content": "warm up"}],
                  "max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 5},
        ).raise_for_status()  # fmt: skip
