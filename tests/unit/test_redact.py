"""Surrogates: of the same shape, the same throughout an exchange, stable when redacted again."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.data import Data, redacted
from router.errors import FitError
from router.redact import (
    KINDS,
    LaterNames,
    Names,
    Pattern,
    Redaction,
    Redactor,
    parse_rules,
    rules_json,
)
from router.rows import Row, StudentAnswer
from router.template import Message

ALL: tuple[Redaction, ...] = (*KINDS, Pattern("customer", r"\bC-\d{6}\b"))
PLANTED = {
    "key": "sk-proj-abcdefghijklmnop1234",
    "email": "Jane.Doe+news@acme-corp.co.uk",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4111 1111 1111 1111",
    "ssn": "078-05-1120",
    "phone": "+49 170 555 0199",
    "ip": "10.20.30.40",
    "customer": "C-483920",
}
words = st.text(st.characters(codec="utf-8", exclude_characters="0123456789+-@."), max_size=12)
texts = st.lists(st.one_of(words, st.sampled_from(list(PLANTED.values()))), max_size=8).map(
    " ".join
)


def clean(text: str, names: Names | None = None) -> str:
    return Redactor(ALL).text(text, names or Names())


@pytest.mark.parametrize(("kind", "value"), PLANTED.items())
def test_each_kind_is_replaced_by_something_like_it(kind: str, value: str) -> None:
    said = clean(f"call me: {value}, please")
    assert value not in said
    found = said.removeprefix("call me: ").removesuffix(", please")
    assert said == f"call me: {found}, please"
    if kind != "key":
        assert Redactor([kind if kind in KINDS else ALL[-1]])._pattern is not None
        assert re.fullmatch(KINDS[kind][0] if kind in KINDS else r"C-\d{6}", found), found
        assert clean(found) == found


def test_a_value_reads_the_same_throughout_an_exchange_and_differs_from_the_next() -> None:
    names = Names()
    said = clean("jane@acme.org wrote to bob@acme.org, and jane@acme.org answered", names)
    first, second, third = re.findall(r"\S+@example\.com", said)
    assert first == third != second
    assert clean("bob@acme.org", names) == second
    # Nothing links two exchanges: numbering starts anew.
    assert clean("zoe@elsewhere.net") == first


@given(texts)
def test_redacting_twice_changes_nothing(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert not [value for value in PLANTED.values() if value in once]


@given(texts, st.lists(texts, max_size=4))
def test_earlier_turns_read_the_same_as_the_chat_goes_on(text: str, later: list[str]) -> None:
    redactor = Redactor(ALL)
    short = redactor.messages([Message("user", text)])
    long = redactor.messages([Message("user", t) for t in (text, *later)])
    assert long[0] == short[0]


@given(st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))
def test_values_hold_nothing_planted_wherever_it_stands(value: object) -> None:
    said = json.dumps(Redactor(ALL).value(value, Names()), ensure_ascii=False)
    assert not [planted for planted in PLANTED.values() if planted in said]


def test_json_within_a_string_is_redacted_as_what_it_holds() -> None:
    arguments = '{"to": "jane\\u0040acme.org", "n": 1}'
    said = Redactor(ALL).value({"arguments": arguments}, Names())["arguments"]
    assert json.loads(said) == {"to": "ada@example.com", "n": 1}


def test_known_secrets_go_whatever_the_rules_say() -> None:
    redactor = Redactor((), ["hunter2 secret"])
    assert redactor.text("it is hunter2 secret!", Names()) == "it is [secret 1 removed]!"


def test_ordinary_text_stays_as_it_is() -> None:
    for text in (
        "What is my balance on 12 March 2026 at 10:30?",
        "I paid 1,299.00 EUR for 3 items in 2025-11-02",
        "version 1.2.3 of sk-learn, room B-12",
        "my apr is 19.99 %, see §4.2.1",
    ):
        assert clean(text) == text


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (["passport"], "is not known"),
        ([{"name": "email", "pattern": "x"}], "no built-in kind"),
        ([{"name": "A b", "pattern": "x"}], "lower-case"),
        ([{"name": "x", "pattern": "("}], "not a regular expression"),
        ([{"name": "x", "pattern": "a*"}], "empty text"),
        ([{"name": "x", "pattern": "(?P<y>a)"}], "named groups"),
        ([{"name": "x"}], "name and pattern"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: list[object], reason: str) -> None:
    with pytest.raises(FitError, match=reason):
        parse_rules(rules)


def test_what_is_said_later_takes_the_exchange_s_surrogates() -> None:
    redactor, names = Redactor(["email"]), Names()
    stored = redactor.text("from ada@example.com to ben@example.com", names)
    later = LaterNames(names)
    # Unknown values stand for those of the exchange, in order; surrogates for themselves.
    assert redactor.text("real@acme.org, new@acme.org", later) == "ada@example.com, ben@example.com"
    assert redactor.text(stored, LaterNames(names)) == stored
    third = redactor.text("a@x.org b@x.org c@x.org", LaterNames(names)).split()
    assert third == ["ada@example.com", "ben@example.com", "cleo@example.com"]


def test_rules_are_compared_by_what_they_say() -> None:
    assert parse_rules(rules_json(ALL)) == ALL
    assert Redactor(ALL).digest == Redactor(parse_rules(rules_json(ALL))).digest
    assert Redactor(["key"]).digest != Redactor(["key", "email"]).digest


def test_rows_are_fitted_on_what_serving_sees() -> None:
    row = Row(
        (Message("user", "mail jane@acme.org"),),
        "sent to jane@acme.org",
        StudentAnswer("sent to jane@acme.org", (), "stop"),
    )
    data = redacted(Data([row], [], []), Redactor(["email"]))
    found = data.train[0]
    assert found.text == "mail ada@example.com"
    assert found.student is not None
    assert found.completion == found.student.text == "sent to ada@example.com"


SECRETS = ["abc/def+ghi=", 'qu"ote-ends-here', "back\\slash-key", "sch\u00fcssel-9"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("deep", [0, 1, 2])
@pytest.mark.parametrize("slashes", [False, True])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_way_to_write_json_hides_a_secret(
    secret: str, deep: int, slashes: bool, ascii_only: bool
) -> None:
    """PHP escapes slashes; tool arguments are JSON within JSON."""
    redactor, value = Redactor((), SECRETS), f"it is {secret}, keep it"
    for _ in range(deep):
        value = json.dumps({"a": value}, ensure_ascii=ascii_only)
        value = value.replace("/", "\\/") if slashes else value
    raw = json.dumps({"x": value}, ensure_ascii=ascii_only)
    raw = raw.replace("/", "\\/") if slashes else raw
    assert not redactor.clean(raw.encode())
    assert redactor.clean(b'{"x": "nothing of the kind"}')
    said = json.dumps(redactor.value(json.loads(raw), Names()))
    assert "removed" in said
