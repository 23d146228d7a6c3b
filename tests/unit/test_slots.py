"""Slots are found where logged prompts of one template differ, and the suggestion works."""

from __future__ import annotations

from router.slots import suggest
from router.template import Message, compiled_slots, fingerprint


def test_a_date_and_a_context_are_found_and_their_expressions_make_one_template() -> None:
    texts = [
        f"You are a bank's helper. Today is {day}. Use this context: {context} Answer in one word."
        for day, context in [
            ("2026-11-25", "accounts are closed"),
            ("2026-11-26", "all is well today, and more"),
            ("2026-12-01", "none"),
        ]
    ]
    other = ["Translate to French."] * 2
    (found,) = suggest(texts + other)
    assert found.count == 3
    assert list(found.slots) == ["slot1", "slot2"]
    assert found.examples["slot1"] == "2026-11-25."
    assert "Today is {{slot1}} Use this context: {{slot2}} Answer" in found.template
    slots = compiled_slots(found.slots)
    prints = {
        fingerprint([Message("system", text), Message("user", "hi")], slots=slots) for text in texts
    }
    assert len(prints) == 1
    fresh = texts[0].replace("2026-11-25", "2031-01-01")
    assert fingerprint([Message("system", fresh), Message("user", "x")], slots=slots) in prints
    changed = texts[0].replace("one word", "two words")
    assert (
        fingerprint([Message("system", changed), Message("user", "x")], slots=slots) not in prints
    )


def test_templates_without_variable_places_are_left_alone() -> None:
    assert suggest(["Name the intent."] * 5) == []
    assert suggest(["a b c", "x y z"]) == []
    assert suggest([]) == []
