"""The linear head against scikit-learn's, answer by answer."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from router.head import LinearHead
from tests.unit.test_router_scores import clusters


@pytest.mark.parametrize("answers", [2, 5])
def test_each_answer_s_row_is_its_own_logistic_regression(answers: int) -> None:
    vectors, labels = clusters(np.random.default_rng(1), answers, 15)
    head = LinearHead(c=3.0).fit(vectors, labels)
    assert head.classes_ == sorted(set(labels))
    logits = head.decision_function(vectors)
    assert logits.shape == (len(vectors), answers)
    for row, name in enumerate(head.classes_):
        one = LogisticRegression(C=3.0, tol=1e-8, max_iter=1000)
        one.fit(vectors, np.asarray(labels) == name)
        np.testing.assert_allclose(logits[:, row], one.decision_function(vectors), atol=0.02)


def test_a_text_that_is_none_of_the_answers_is_denied_by_each() -> None:
    vectors, labels = clusters(np.random.default_rng(1), 5, 15)
    head = LinearHead().fit(vectors, labels)
    far = -vectors.mean(axis=0, keepdims=True)
    assert (head.decision_function((far / np.linalg.norm(far)).astype(np.float32)) < 0).all()
