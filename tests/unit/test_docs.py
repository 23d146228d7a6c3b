"""A setting, metric, header, command, reason or error that is not documented fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from openapi_spec_validator import OpenAPIV31SpecValidator

from deploy.docs import tables
from deploy.docs.__main__ import FOLDER, OPENAPI, PAGES, page
from deploy.docs.openapi import document
from gateway.app import _JUDGED, EMBEDDINGS, _rest
from gateway.errors import CODES
from gateway.service import Service
from gateway.settings import Config
from gateway.store.audits import EventKind
from gateway.verdict import Reason
from tests.fakes.rig import ROOT, SECRETS, config_data, encoders


@pytest.mark.parametrize("name", [*PAGES, OPENAPI])
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
        for target, _, anchor in (
            found.partition("#")
            for found in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text())
        ):
            place = path.parent / target if target else path
            assert place.exists(), (path, target)
            if anchor:
                assert anchor in anchors(place), (path, target, anchor)


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub has it."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def test_openapi_is_valid_and_has_every_path_that_is_served(tmp_path: Path) -> None:
    told = document()
    OpenAPIV31SpecValidator(told).validate()
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", tmp_path / "x.db")
    config = Config(**data, admin={"key_env": "ADMIN"})
    service = Service(config, {**SECRETS, "ADMIN": "a"}, encoders=encoders())
    served = {
        (re.sub(r":path}", "}", route.path), method.lower())
        for route in _rest(service).routes if isinstance(route, APIRoute)
        for method in route.methods or ()
    } | {(path, "post") for path in (*_JUDGED, EMBEDDINGS)}  # fmt: skip
    written = {(path, method) for path, methods in told["paths"].items() for method in methods}
    assert written == served


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
