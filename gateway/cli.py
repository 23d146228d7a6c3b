"""The ``understudy`` command. Sub-commands are loaded by name, so that ``serve`` never imports
torch and ``--help`` never imports numpy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("gateway.commands", "Run the gateway."),
    "check-config": ("gateway.commands", "Check a configuration file and name every mistake."),
    "doctor": ("gateway.doctor", "Check everything that a gateway needs, and say how to mend it."),
    "top": ("gateway.top", "Watch the split, the promise and the upstreams, live."),
    "report": ("distill.overview", "What a week brought: split, money, promise, lessons."),
    "explain": ("gateway.commands", "Say how a prompt would be judged, and why."),
    "replay": ("gateway.commands", "Try another budget, threshold or artefact on logged draws."),
    "gate": ("gateway.gates", "Show, open and close the gates of tasks."),
    "keys": ("gateway.keys", "Make a client key and its digest; revoke and restore keys."),
    "captures": ("gateway.captures", "List, show, export, import and forget what was captured."),
    "review": ("gateway.reviewing", "Decide on the answers whose label would help most."),
    "db": ("gateway.database", "The Postgres schema and the outbox."),
    "backup": ("gateway.backing_up", "Write store and students to one file, while serving."),
    "restore": ("gateway.backing_up", "Put a backup back."),
    "router": ("distill.router_commands", "Fit and evaluate the judge."),
    "student": ("distill.student_commands", "Train a student by hand; serve classifier students."),
    "students": ("gateway.students", "Student versions: list, show, promote, roll back."),
    "task": ("distill.task_commands", "Begin a task: ask, check, write its configuration."),
    "distill": ("distill.distill_commands", "Distil a task's student, and see what became of it."),
}


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(_version())
        return
    if arguments[0] not in COMMANDS:
        print(f"error: no command {arguments[0]!r}{_nearest(arguments[0])}", file=sys.stderr)
        sys.exit(2)
    run(arguments[0], arguments[1:])


def run(name: str, arguments: list[str]) -> None:
    """Run one sub-command; exits the process."""
    module = importlib.import_module(COMMANDS[name][0])
    # A module that holds several top-level commands picks by name; a group takes what follows.
    single = len([n for n, (m, _) in COMMANDS.items() if m == COMMANDS[name][0]]) > 1
    module.app(args=[name, *arguments] if single else arguments, prog_name=_program(name, single))


def _program(name: str, single: bool) -> str:
    return "understudy" if single else f"understudy {name}"


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: understudy COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "understudy COMMAND --help tells more.",
        ]
    )


def _version() -> str:
    from importlib.metadata import version

    return f"understudy {version('understudy')}"


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; see understudy --help"


if __name__ == "__main__":
    main()
