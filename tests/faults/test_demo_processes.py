"""The demo says in a line why it cannot run, and leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.demo import checks
from deploy.demo.processes import Children, ProcessDied, wait_ready
from tests.fakes.rig import ROOT


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether it ends within five seconds."""
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_each_problem_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(shutil, "which", lambda _: None)
        monkeypatch.setattr(checks, "_available_mib", lambda: 100)
        found = checks.problems([("gateway", port)], tmp_path / "none")
    assert len(found) == 4
    assert (
        found[0] == f"port {port} (gateway) is in use; stop what listens there or set GATEWAY_PORT"
    )
    assert "100 MiB of memory are free" in found[1]
    assert "C++ compiler" in found[2]
    assert "make student-env" in found[3]
    assert not any("\n" in problem for problem in found)


def test_children_end_with_the_block_even_if_they_will_not(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    with Children(tmp_path) as children:
        child = children.start("stubborn", [sys.executable, "-c", stubborn], {})
        while "up" not in child.tail():
            time.sleep(0.02)
        child.stop(grace_s=0.2)
        assert not alive(child.popen.pid)


def test_a_child_that_dies_early_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("brief", [sys.executable, "-c", "print('why'); exit(3)"], {})
        with pytest.raises(ProcessDied, match="brief ended with 3:\nwhy"):
            wait_ready(child, "http://127.0.0.1:9/", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
def test_a_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from deploy.demo.processes import Children\n"
        "sleeper = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "with Children(Path(sys.argv[1])) as children:\n"
        "    print(children.start('s', sleeper, {}).popen.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(child)
