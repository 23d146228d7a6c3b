"""A remembered look is the look; the memory forgets the least recently used."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.confidence import Prefix
from router.judge import Judge
from router.memory import Memory
from tests.fakes.rig import ARTEFACTS, FAR, IN_DOMAIN, encoders


class Counting:
    """A tier that counts its looks."""

    def __init__(self) -> None:
        self.looked: list[str] = []

    def look(self, text: str) -> Any:
        """The text itself."""
        self.looked.append(text)
        return f"look at {text}"


@given(st.integers(0, 4), st.lists(st.sampled_from("abcdef"), max_size=40))
def test_it_answers_as_the_tier_and_keeps_no_more_than_it_may(size: int, texts: list[str]) -> None:
    tier: Any = Counting()
    memory = Memory(tier, size)
    recent: list[str] = []
    for text in texts:
        known = text in recent[-size:] if size else False
        before = len(tier.looked)
        assert memory.knows(text) is known
        look: Any = memory.look(text)
        assert look == f"look at {text}"
        assert len(tier.looked) == before + (not known)
        recent = [t for t in recent if t != text] + [text]
    assert len(memory._looks) <= size


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
