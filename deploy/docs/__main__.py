"""Write the reference pages: ``python -m deploy.docs``; ``--check`` only compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.docs import tables
from deploy.docs.openapi import document

FOLDER = Path(__file__).parent
OPENAPI = "openapi.json"
_ADMIN = (
    "## Admin\n\nWith `admin.key_env` set, and that key as the bearer:\n\n"
    "- `GET /admin/tasks`, `GET /admin/tasks/{name}`: versions, budget, certificate, gate, draw rate "
    "and audit (state, bounds, labels missing and `eta_s`, the seconds to them at the present rate).\n"
    "- `GET /admin/tasks/{name}/events`: what happened, newest first.\n"
    '- `POST /admin/tasks/{name}/gate` with `{"open": true or false, "note": "why"}`: an '
    "operator's word. It is in force here at once, on other replicas of the store within two "
    "seconds. What an operator closed stays closed over new versions; what the audit closed opens "
    "by this, or with a newly certified version.\n"
    '- `POST /admin/tasks/{name}/promote` with `{"student": "task@vN", "share": 0.1, "note": "why"}` (all '
    'traffic without `share`), `POST /admin/tasks/{name}/rollback` with `{"note": "why"}` (and `"to"` for a '
    "version other than the one before): in force here at once, elsewhere within a second.\n"
    "- `GET /admin/exchanges/{id}`: one exchange in full; that somebody looked is recorded first.\n\n"
    "`understudy gate` and `understudy students` do the same through the store. Events, also counted in "
    "`understudy_events_total`:"
)
METRICS = (
    "# Metrics\n\nAll labels are bounded; none holds a user, a key or a prompt (`slice` is one of a task's "
    "own frequent answers, 20 at most). `/metrics` of any worker tells of all of them.\n\n`understudy_requests_total`, `understudy_tokens_total`, "
    "`understudy_cost_usd_total`,\n`understudy_cost_avoided_usd_total` and "
    "`understudy_fallback_records_total` go on over restarts: the\ncommit that stores an exchange "
    "counts it in the store's file too, and a start begins there. Every other\ncounter begins at "
    "zero with the gateway. `understudy_distill_*` is read from the store at each scrape;\nwhile it "
    "does not answer there is none of them."
)
PAGES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "configuration.md": (
        "# Configuration\n\nOne YAML file, validated once at start; `understudy check-config FILE` "
        "names every mistake with\nfile, key and reason. Any key can be overridden by an environment "
        "variable: `UNDERSTUDY_` and the\nkey in capitals, levels joined by `__`, such as "
        "`UNDERSTUDY_LISTEN__PORT=9000`; lists are given as\nJSON. Secrets are never in the file: "
        "keys that end in `_env` name the variable that holds them.\nRelative paths start at the "
        "file's folder.",
        lambda: tables.settings() + "\n\n## Comparators\n\n" + tables.comparators(),
    ),
    "http.md": (
        "# HTTP reference\n\nAs [OpenAPI 3.1](openapi.json). `POST /v1/chat/completions` (JSON and SSE), `GET /v1/models`, "
        "`GET /v1/models/{id}`, `GET /healthz`\n(the process is up), `GET /readyz` (it can serve), "
        "`GET /metrics` (Prometheus); `POST /v1/feedback` ([what is kept](keeping.md)); `POST` to each of `passthrough_paths`.\n\nThe `model` of a request is a task's name, "
        "`task:teacher`, `task:student`, a model name that a task\nclaims (`match`), or, with "
        "`default.passthrough`, any other. Every error is OpenAI's object\n`{\"error\": {\"message\", "
        "\"type\", \"param\", \"code\"}}`.",
        lambda: "\n\n".join(
            ["## Headers\n\n" + tables.headers(), "## Reasons\n\n" + tables.reasons(),
             "## Errors\n\n" + tables.errors(), _ADMIN, tables.events()]
        ),
    ),
    "metrics.md": (METRICS, tables.metrics),
    "cli.md": ("# Commands", tables.commands),
}  # fmt: skip


def page(name: str) -> str:
    """The whole text of a page."""
    if name == OPENAPI:
        return json.dumps(document(), indent=1) + "\n"
    intro, body = PAGES[name]
    return f"{intro}\n\n{body()}\n"


def main() -> int:
    """Write the pages, or with ``--check`` name those that are out of date."""
    stale = []
    for name in (*PAGES, OPENAPI):
        text = page(name)
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if "--check" in sys.argv and stale:
        print("out of date, run 'python -m deploy.docs':", ", ".join(stale), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
