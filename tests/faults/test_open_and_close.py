"""Starting and stopping at any moment leaves no thread at work on what has been closed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.fakes.rig import ROOT

SCRIPT = """
import asyncio, sys
from pathlib import Path
from gateway.service import Service
from gateway.settings import Config
from tests.fakes.rig import SECRETS, config_data, encoders

async def main(store):
    data = config_data("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1", store)
    for number in range(60):
        async with Service(Config(**data), SECRETS, encoders=encoders()):
            await asyncio.sleep(0.002 * (number % 3))

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_sixty_short_lives_end_well(tmp_path: Path) -> None:
    """In a process of its own: a connection closed under a thread's hands ends in a crash."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, str(tmp_path / "x.db"), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-2000:]
    assert out == b""
