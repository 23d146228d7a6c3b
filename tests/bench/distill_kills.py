"""``make bench-distill-kills``: nightly runs killed at random moments, fifty times."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from deploy.demo.classifiers import classifiers_ready, start_classifiers
from deploy.demo.processes import Children
from tests.fakes.process import free_port
from tests.fakes.rig import CACHE
from tests.fakes.traffic import captured, config_file, fill
from tests.faults.distill_kills import ended, facts, killed_until_it_ends, start


def main() -> None:
    """Kill, check, compare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    wanted = parser.parse_args()
    kills: Counter[str] = Counter()
    started, runs = time.monotonic(), 0
    with tempfile.TemporaryDirectory(dir="var") as name:
        folder, port = Path(name).resolve(), free_port()
        with Children(folder / "logs") as children:
            url = classifiers_ready(start_classifiers(children, port, CACHE), port)
            rows = captured(1000)
            (folder / "reference").mkdir()
            place = fill(folder / "reference", rows)
            config = config_file(folder / "reference", url)
            ended(start(config), config)
            reference = facts(place, folder / "reference")
            while sum(kills.values()) < wanted.kills:
                runs += 1
                left = wanted.kills - sum(kills.values())
                found = killed_until_it_ends(
                    folder / f"run{runs}", url, rows, min(left, 12), seed=runs
                )
                kills += found.kills
                assert found.facts == reference, (found.facts, reference)
    print(
        json.dumps(
            {"kills": sum(kills.values()), "by_stage": dict(kills), "runs": runs,
             "seconds": round(time.monotonic() - started, 1)}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
