"""What is remembered of a prompt is what the judge says; least recently used ones are forgotten."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from router.confidence import Prefix
from router.judge import Judge
from router.memory import Memory
from router.template import Message
from tests.fakes.rig import ARTEFACTS, FAR, IN_DOMAIN, encoders


@given(st.integers(0, 4), st.lists(st.sampled_from("abcdef"), max_size=40))
def test_it_answers_as_the_tier_and_keeps_no_more_than_it_may(size: int, texts: list[str]) -> None:
    memory = Memory[str](size)
    made: list[str] = []

    def make(text: str) -> str:
        made.append(text)
        return f"look at {text}"

    recent: list[str] = []
    for text in texts:
        known = text in recent[-size:] if size else False
        before = len(made)
        assert memory.knows(text) is known
        assert memory.recall(text, partial(make, text)) == f"look at {text}"
        assert len(made) == before + (not known)
        recent = [t for t in recent if t != text] + [text]
    assert len(memory._values) <= size


def test_a_repeated_prompt_gets_the_same_judgement() -> None:
    judge = Judge.load(ARTEFACTS / "router/v1", encoders())
    other = Judge.load(ARTEFACTS / "router/v1", encoders())
    other.remember(0)
    for text in (IN_DOMAIN, FAR, "how do i pay my bill", "x" * 5000):
        for _ in range(2):
            pres = [j.prejudge_text(text, "t") for j in (judge, other)]
            refined = [j.refine(pre) for j, pre in zip((judge, other), pres, strict=True)]
            assert [p.ood_score for p in pres] == [pres[0].ood_score] * 2
            assert [p.ood_score for p in refined] == [refined[0].ood_score] * 2
            assert refined[0].out == refined[1].out
        assert judge.quick(pres[0])
    prefix = Prefix((), "apr", True)
    pre = judge.refine(judge.prejudge_text(IN_DOMAIN, "t"))
    assert judge.score(pre, prefix) == other.score(pre, prefix)


def test_a_whole_prompt_is_remembered_and_another_is_not_taken_for_it() -> None:
    judge = Judge.load(ARTEFACTS / "router/v1", encoders())
    other = Judge.load(ARTEFACTS / "router/v1", encoders())
    other.remember(0)
    system, user = Message("system", "Name the banking intent."), Message("user", IN_DOMAIN)
    prompts = [
        (system, user),
        (user,),
        (user, system),
        (Message("user", f"{IN_DOMAIN} "),),
        # What would read the same if it were only written one behind the other.
        (Message("user", "a"), Message("user", "b")),
        (Message("user", "auser 1 b"),),
        (Message("user", "x" * 5000),),
    ]
    for _ in range(2):
        for messages in prompts:
            for rest in ((), (None, None), ([{"type": "function"}], None), (None, {"type": "x"})):
                found, wanted = judge.prejudge(messages, *rest), other.prejudge(messages, *rest)
                assert (found.text, found.template, found.known_template, found.ood_score) == (
                    wanted.text, wanted.template, wanted.known_template, wanted.ood_score
                )  # fmt: skip
                assert (found.out, found.undecided) == (wanted.out, wanted.undecided)
