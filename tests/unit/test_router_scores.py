"""The judge's parts: each score points the right way, at its edges too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from router.confidence import FLOOR, NAMES, SIGNS, LengthScale, Prefix, confidence_features
from router.data import closed_labels, thinned
from router.distance import Distance, NearestPrompts
from router.errors import FitError
from router.evaluate import ood_metrics
from router.outlier import fit_outlier
from router.projection import Projection
from router.rows import Row, StudentAnswer, TokenLogprob, usable
from router.template import (
    CONTEXT_CHARS,
    Message,
    compiled_slots,
    fingerprint,
    variable_text,
)
from router.text import MAX_CHARS, clean
from tests.fakes.rig import encoders

SCALE = LengthScale(3.0, 1.0)
NO_HEAD = np.zeros(0, dtype=np.float32)
LOGPROBS = st.one_of(
    st.floats(-30, 0), st.just(float("-inf")), st.just(float("nan")), st.just(-9999.0)
)


def prefix(logprobs: list[float], text: str = "abc", finished: bool = True) -> Prefix:
    tokens = tuple(TokenLogprob("t", v, (v, v - 1.0)) for v in logprobs)
    return Prefix(tokens, text, finished)


@given(st.lists(LOGPROBS, max_size=40), st.booleans())
def test_features_are_finite_whatever_vllm_reports(logprobs: list[float], finished: bool) -> None:
    found = confidence_features(prefix(logprobs, finished=finished), SCALE, [], NO_HEAD)
    assert len(found) == len(NAMES) == len(SIGNS)
    assert np.isfinite(found).all()
    assert found[1] >= FLOOR
    values = [FLOOR if np.isnan(value) else max(value, FLOOR) for value in logprobs] or [FLOOR]
    assert found[1] == pytest.approx(np.mean(values))
    assert found[3] == pytest.approx(np.quantile(values, 0.1))


def test_a_surer_answer_has_better_features() -> None:
    sure = TokenLogprob("a", -0.01, (-0.01, -6.0, -8.0))
    unsure = TokenLogprob("a", -0.9, (-0.9, -1.0, -2.0))
    better, worse = (
        np.array(confidence_features(Prefix((token,) * 3, "a", True), SCALE, [], NO_HEAD))
        for token in (sure, unsure)
    )
    signs = np.array(SIGNS)
    assert (signs * (worse - better) >= 0).all()
    assert (signs[:5] * (worse - better)[:5] > 0).all()


def test_a_token_that_was_not_the_likeliest_has_a_negative_margin() -> None:
    odd = TokenLogprob("b", -2.0, (-0.2, -2.0))
    found = confidence_features(Prefix((odd,), "b", True), SCALE, [], NO_HEAD)
    assert found[0] == pytest.approx(-1.8)


def test_the_head_is_asked_about_the_answer_that_was_given() -> None:
    classes, head = (
        ["pay_bill", "pay_day", "transfer"],
        np.log(np.array([0.7, 0.2, 0.1], np.float32)),
    )

    def opinion(text: str, finished: bool) -> list[float]:
        asked = Prefix((TokenLogprob("t", -0.1),), text, finished)
        return [float(v) for v in confidence_features(asked, SCALE, classes, head)[-2:]]

    assert opinion("transfer", True) == pytest.approx([1.0, np.log(0.1)], abs=1e-5)
    assert opinion(" pay_day ", True) == pytest.approx([1.0, np.log(0.2)], abs=1e-5)
    assert opinion("pay_", True) == [0.0, FLOOR]
    assert opinion("pay_", False) == pytest.approx([1.0, np.log(0.7)], abs=1e-5)
    assert opinion("hmm", False) == [0.0, FLOOR]


def test_a_prefix_of_a_long_answer_is_its_tokens() -> None:
    tokens = tuple(TokenLogprob(f"{n} ", -0.1) for n in range(5))
    answer = StudentAnswer("0 1 2 3 4 ", tokens, "stop")
    assert Prefix.of(answer, 3) == Prefix(tokens[:3], "0 1 2 ", False)
    assert Prefix.of(answer, 5) == Prefix(tokens, "0 1 2 3 4 ", True)


def test_usable_answers_are_whole_and_not_empty() -> None:
    assert usable(StudentAnswer("a", (), "stop"))
    for answer in (None, StudentAnswer(" ", (), "stop"), StudentAnswer("a", (), "length")):
        assert not usable(answer)


def clusters(
    rng: np.random.Generator, classes: int, each: int, spread: float = 0.4
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Unit vectors around random centres."""
    centres = rng.normal(size=(classes, 32))
    points = np.repeat(centres, each, axis=0) + spread * rng.normal(size=(classes * each, 32))
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return unit, [f"c{n}" for n in range(classes) for _ in range(each)]


def test_prototypes_stand_for_labelled_prompts() -> None:
    vectors, labels = clusters(np.random.default_rng(1), 12, 20)
    nearest = NearestPrompts().fit(vectors, labels)
    assert nearest.points_.shape == (12 * 5, 32)
    assert nearest.k_ == 1
    np.testing.assert_allclose(np.linalg.norm(nearest.points_, axis=1), 1.0, atol=2e-3)
    assert NearestPrompts().fit(vectors[:6], list("aabbcc")).points_.shape == (3, 32)
    open_ = NearestPrompts().fit(vectors)
    assert (open_.points_.shape, open_.k_) == ((240, 32), 10)
    np.testing.assert_allclose(
        open_.score_samples(vectors[:3]),
        np.sort(vectors[:3] @ open_.points_.T, axis=1)[:, -10:].mean(axis=1),
        rtol=1e-5,
    )


def test_head_probabilities_add_up_for_two_classes_too() -> None:
    for classes in (2, 5):
        vectors, labels = clusters(np.random.default_rng(2), classes, 15)
        distance = Distance.fitted(vectors, labels)
        scores = distance.scores(vectors)
        assert scores.head_logprobs.shape == (classes * 15, classes)
        np.testing.assert_allclose(np.exp(scores.head_logprobs).sum(axis=1), 1.0, rtol=1e-4)
        named = [distance.classes[i] for i in scores.head_logprobs.argmax(axis=1)]
        assert np.mean([a == b for a, b in zip(named, labels, strict=True)]) > 0.95


@pytest.mark.parametrize("classes", [0, 2, 5, 30])
def test_one_prompt_scores_as_it_does_among_many(classes: int) -> None:
    """An open task, two classes, and as many as make prototypes matter."""
    vectors, labels = clusters(np.random.default_rng(4), classes or 3, 24)
    distance = Distance.fitted(vectors, labels if classes else None)
    strange = np.random.default_rng(5).normal(size=(40, vectors.shape[1])).astype(np.float32)
    strange /= np.linalg.norm(strange, axis=1, keepdims=True)
    strange[0] = 0.0  # a text without any token
    for some in (vectors[::7], strange):
        among = distance.scores(some)
        for row, vector in enumerate(some):
            features, head_logprobs = distance.of_prompt(vector)
            np.testing.assert_allclose(features, among.features()[row], atol=2e-5)
            np.testing.assert_allclose(head_logprobs, among.head_logprobs[row], atol=2e-4)


def test_held_out_classes_teach_what_an_outlier_looks_like() -> None:
    rng = np.random.default_rng(3)
    vectors, labels = clusters(rng, 30, 20)
    inside = np.array([int(name[1:]) < 20 for name in labels])
    names = [name for name, kept in zip(labels, inside, strict=True) if kept]
    distance = Distance.fitted(vectors[inside], names)
    model = fit_outlier(vectors[inside], names, seed=1)
    scores = np.array([model.probability(distance.of_prompt(vector)[0]) for vector in vectors])
    assert ood_metrics(scores, ~inside)["auroc"] > 97


def test_metrics_of_scores_that_are_known() -> None:
    perfect = ood_metrics(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert perfect == {"auroc": 100.0, "aupr_out": 100.0, "fpr95": 0.0}
    none = ood_metrics(np.array([0.5] * 4), np.array([False, False, True, True]))
    assert (none["auroc"], none["fpr95"]) == (50.0, 100.0)


def test_labels_are_closed_only_where_they_repeat() -> None:
    def rows(completions: list[str]) -> list[Row]:
        return [Row((Message("user", str(n)),), c) for n, c in enumerate(completions)]

    assert closed_labels(rows(["a", "b"] * 3)) == ["a", "b"] * 3
    assert closed_labels(rows(["a"] * 6)) is None
    assert closed_labels(rows(list("abcdef"))) is None
    assert closed_labels(rows(["a", "b" * 80] * 3)) is None


def test_rows_of_unequal_probability_are_thinned_to_the_lowest() -> None:
    rows = [
        Row((Message("user", str(n)),), "a", weight=50.0 if n % 2 else 2.0) for n in range(4000)
    ]
    kept = thinned(rows, seed=1)
    heavy = sum(row.weight == 50.0 for row in kept)
    assert heavy == 2000
    assert len(kept) - heavy == pytest.approx(80, abs=30)
    assert thinned(rows[1::2], seed=1) == rows[1::2]


@given(st.text(max_size=50))
def test_any_text_is_embedded_to_a_unit_vector(text: str) -> None:
    vector = encoders().sentence.encode([text])[0]
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-3)


def test_long_and_broken_text_is_bounded_and_clean() -> None:
    assert clean("a\n\t b  c") == "a b c"
    assert len(clean("x" * 100_000)) == MAX_CHARS
    assert clean("\ud800ok") == "?ok"
    shared = encoders().sentence
    long = shared.encode(["word " * 20_000, "word " * 5_000])
    np.testing.assert_allclose(long[0], long[1], atol=1e-6)
    assert shared.encode([]).shape == (0, 1152)


def test_a_batch_equals_its_rows() -> None:
    shared = encoders().sentence
    texts = ["what is my apr", "a much longer question about " * 5, "hi"]
    alone = np.vstack([shared.encode([text]) for text in texts])
    np.testing.assert_array_equal(shared.encode(texts), alone)


def test_a_nine_turn_chat_is_embedded_newest_first_and_bounded() -> None:
    chat = [
        Message("system", "s" * 5000),
        *(Message(r, f"{r}{n} " + "x" * 100) for n in range(4) for r in ("user", "assistant")),
    ]
    chat.append(Message("user", "and for the other one?"))
    assert len(chat) == 10
    text = variable_text(chat)
    parts = text.split("\n")
    assert parts[0] == "and for the other one?"
    assert [part.split(" ")[0] for part in parts[1:]] == [
        "assistant3", "user3", "assistant2", "user2", "assistant1",
    ]  # fmt: skip
    assert len(text) <= len(parts[0]) + CONTEXT_CHARS + len(parts)
    # What matters is in both encoders' windows.
    shared = encoders()
    for encoder in (shared.static, shared.sentence):
        asked, else_ = encoder.encode([text, text.replace("the other one", "my sister's house")])
        assert float(asked @ else_) < 0.999
    assert variable_text([*chat, Message("assistant", "prefill")]) == text
    assert variable_text([Message("system", "s")]) == ""
    assert variable_text([Message("user", "alone")]) == "alone"


def test_a_slot_s_content_is_no_part_of_the_template() -> None:
    slots = compiled_slots({"date": r"\d{4}-\d\d-\d\d", "context": r"(?<=Context: ).*(?= Answer)"})

    def chat(system: str) -> list[Message]:
        return [Message("system", system), Message("user", "hi")]

    one = fingerprint(chat("Today is 2026-11-25.  Context: a b c Answer briefly."), slots=slots)
    text = "Today is 2027-01-02. Context: other\nthings Answer briefly."
    two = fingerprint(chat(text), slots=slots)
    assert one == two
    assert one != fingerprint(chat("Today is soon. Context: a Answer briefly."), slots=slots)
    assert one != fingerprint(chat("Today is 2026-11-25.  Context: a b c Answer briefly."))
    for bad in ({"date": "("}, {"Date!": "x"}, {"any": "x*"}):
        with pytest.raises(FitError, match="slot"):
            compiled_slots(bad)


@given(st.text(max_size=80))
def test_the_static_encoder_embeds_any_text(text: str) -> None:
    vector = encoders().static.encode([text])[0]
    assert vector.shape == (256,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-3) or not vector.any()


def test_a_projection_brings_a_class_together() -> None:
    vectors, labels = clusters(np.random.default_rng(8), 10, 40, spread=1.2)
    projection = Projection(seed=1).fit(vectors, labels)
    out = projection.transform(vectors)
    same = np.equal.outer(np.array(labels), np.array(labels))

    def told_apart(points: npt.NDArray[np.float32]) -> float:
        return float(roc_auc_score(same.ravel(), (points @ points.T).ravel()))

    assert told_apart(out) > told_apart(vectors)
    once_more, other = (Projection(seed=seed).fit(vectors, labels) for seed in (1, 2))
    np.testing.assert_array_equal(once_more.weight_, projection.weight_)
    assert not np.array_equal(other.weight_, projection.weight_)
    again = Projection.from_state(
        projection.weight_.astype(np.float16), projection.bias_.astype(np.float16)
    )
    np.testing.assert_array_equal(again.transform(vectors), out)
    assert np.isfinite(projection.transform(np.zeros((1, 32), np.float32))).all()
