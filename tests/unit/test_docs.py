"""A setting, metric, header, command, reason or error that is not documented fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.docs import tables
from deploy.docs.__main__ import FOLDER, PAGES, page
from gateway.errors import CODES
from gateway.settings import Config
from gateway.store.audits import EventKind
from gateway.verdict import Reason
from tests.fakes.rig import ROOT


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_those_that_the_code_gives(name: str) -> None:
    assert (FOLDER / name).read_text() == page(name), "run: python -m deploy.docs"


def test_every_setting_has_a_meaning() -> None:
    rows = list(tables._settings(Config, ""))
    assert len(rows) > 45
    assert not [row[0] for row in rows if not row[3]]


def test_every_reason_and_code_is_explained() -> None:
    assert set(tables.REASONS) == set(Reason)
    assert set(tables.EVENTS) == set(EventKind)
    assert all(info.meaning for info in CODES.values())


def test_every_header_that_the_code_reads_or_writes_is_documented() -> None:
    known = {*tables.REQUEST_HEADERS, *tables.RESPONSE_HEADERS}
    for path in (ROOT / "gateway").rglob("*.py"):
        used = re.findall(r'"(x-[a-z-]+)"', path.read_text())
        assert not set(used) - known, path


def test_every_metric_and_command_is_told_apart() -> None:
    assert all(family.documentation for family in tables.families())
    page = (ROOT / "deploy/docs/metrics.md").read_text()
    assert all(f"`{family.name}" in page for family in tables.families())
    assert len({name for name, _ in tables.all_commands()}) >= 9
    for name, command in tables.all_commands():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (name, parameter.name)


def test_links_in_the_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]
    for path in pages:
        if "node_modules" in path.parts:
            continue
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)


def test_every_line_of_the_threat_model_names_a_test_that_is_there() -> None:
    lines = (ROOT / "deploy/SECURITY.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| ---")][1:]
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) >= 12
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names, row
        for name in names:
            assert f"def {name}(" in written, name


def test_no_path_of_a_machine_is_in_the_project() -> None:
    home = str(Path.home())
    for path in [*(ROOT / "deploy").rglob("*"), *(ROOT / "tests/data").rglob("*")]:
        if path.suffix in {".md", ".json", ".yaml", ".py", ".lock", ".txt"}:
            text = path.read_text()
            assert home not in text, path
            assert str(ROOT) not in text, path


def typed() -> list[tuple[str, list[str]]]:
    """Commands that pages tell a reader to type, in code: (page, words after ``understudy``)."""
    found = []
    pages = [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md")]
    for path in pages:
        if path.name == "cli.md" or "node_modules" in path.parts:
            continue
        for code in re.findall(
            r"`([^`\n]+)`|^\$? *(understudy .*)$", path.read_text(), re.MULTILINE
        ):
            words = "".join(code).split()
            if words[:1] == ["understudy"] and len(words) > 1:
                found.append((path.name, words[1:]))
    return found


def test_commands_in_the_pages_exist() -> None:
    commands = dict(tables.all_commands())
    roots = {name.split()[0] for name in commands}
    assert len(typed()) > 40
    for where, words in typed():
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in commands), None)
        if name is None:
            group = words[0] in roots and (len(words) == 1 or "|" in " ".join(words))
            assert group, f"{where}: understudy {' '.join(words)}"
            continue
        options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"{where}: understudy {' '.join(words)}: {given - options}"
        # Who gives options has to give all that are wanted; a bare name only names.
        required = {p.opts[0] for p in commands[name].params
                    if p.required and not getattr(p, "prompt", None)
                    and p.param_type_name == "option"} - {"--config"}  # fmt: skip
        said = f"{where}: understudy {' '.join(words)}: {required - given}"
        assert not given or "…" in words or required <= given, said
