"""Which task a request is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.retry_budget import RetryBudget
from gateway.scrub import Scrubber
from gateway.settings import Config
from gateway.slots import Slots
from gateway.tasks import TaskRuntime, Tasks, TeacherRuntime, TeacherUpstream
from gateway.upstream import Upstream
from router.template import Message, fingerprint
from tests.fakes.rig import config_data

SYSTEM = Message("system", "Route this ticket.")
CHAT = (SYSTEM, Message("user", "my printer is on fire"))


def tasks(*matches: dict[str, Any] | None, default: str | None = None) -> Tasks:
    """Tasks ``t0``, ``t1``, … with these claims, teachers only."""
    data = config_data("http://s/v1", "http://t/v1", Path("x.db"), student=None, router=None)
    task = data["tasks"][0]
    data["tasks"] = [{**task, "name": f"t{n}", "match": m} for n, m in enumerate(matches)]
    if default is not None:
        data["default"] = {"passthrough": default}
    config = Config(**data)
    runtimes = [
        TaskRuntime(
            t.name,
            t,
            TeacherRuntime(
                t.teacher,
                [TeacherUpstream(Upstream(t.name, "http://t", None), "m", t.teacher.price)],
                RetryBudget(0.1),
                Slots(None),
            ),
            None,
            None,
            None,
            Scrubber(t),
        )
        for t in config.tasks
    ]
    return Tasks(config, runtimes)


def resolved(which: Tasks, model: str, principal: str = "app") -> tuple[str, str | None]:
    task, side = which.resolve(model, principal, CHAT)
    return task.name, side


def test_names_and_sides() -> None:
    assert resolved(tasks(None), "t0") == ("t0", None)
    assert resolved(tasks(None), "t0:teacher") == ("t0", "teacher")
    assert resolved(tasks(None), "t0:student") == ("t0", "student")
    for wrong in ("t0:", "t0:both", "t1", "T0", ""):
        with pytest.raises(GatewayError, match="does not exist"):
            resolved(tasks(None), wrong)


def test_every_given_part_of_a_claim_must_match() -> None:
    template = fingerprint(CHAT)
    which = tasks(
        {"models": ["gpt"], "keys": ["plain"]},
        {"models": ["gpt"], "template": template},
        {"template": fingerprint([Message("user", "x")])},
    )
    assert resolved(which, "gpt", "plain") == ("t0", None)
    assert resolved(which, "gpt", "app") == ("t1", None)
    with pytest.raises(GatewayError):
        resolved(which, "other", "app")
    assert which.resolve("other", "app", (Message("user", "hello"),))[0].name == "t2"


def test_what_no_task_claims_goes_to_the_default_or_nowhere() -> None:
    task, side = tasks(None, {"models": ["x"]}, default="t1").resolve("gpt-9", "app", CHAT)
    assert (task.name, side, task.passthrough) == ("default", None, True)
    assert task.teacher.upstream.name == "t1"
    first, _ = tasks(None, None, default="teacher").resolve("gpt-9", "app", CHAT)
    assert first.teacher.upstream.name == "t0"


def test_the_fingerprint_sees_the_fixed_part_only() -> None:
    base = fingerprint(CHAT)
    assert fingerprint((SYSTEM, Message("user", "else"))) == base
    assert fingerprint((Message("developer", "Route  this\nticket."), CHAT[1])) == base
    assert fingerprint((Message("system", "Route that ticket."), CHAT[1])) != base
    assert fingerprint(CHAT, tools=[{"type": "function"}]) != base
    assert fingerprint(CHAT, response_format={"type": "json_object"}) != base
    more = (*CHAT, Message("assistant", "sure"), Message("user", "thanks"))
    assert fingerprint(more) != base
    assert fingerprint((*more, Message("user", "again"))) == fingerprint(more)
