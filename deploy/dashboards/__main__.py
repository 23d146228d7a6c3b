"""``python -m deploy.dashboards``: write ``deploy/grafana/dashboards/*.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards.boards import BOARDS

FOLDER = Path(__file__).resolve().parents[1] / "grafana/dashboards"


def files() -> Iterator[tuple[Path, str]]:
    """Every dashboard's file and its text."""
    for make in BOARDS:
        found = json.loads(json.dumps(make().build(), cls=JSONEncoder))
        # The SDK writes two fields of Grafana 10 that later schemas do not know.
        found.pop("style", None)
        for variable in found["templating"]["list"]:
            variable.pop("id", None)
        yield FOLDER / f"{found['uid']}.json", json.dumps(found, sort_keys=True, indent=2) + "\n"


def main() -> None:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in files():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
