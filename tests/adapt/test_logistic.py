"""The logistic regression equals scikit-learn's, from features in one piece or in many."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from minillm import InputError
from minillm.adapt.logistic import Logistic
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

WIDTH, ROWS = 11, 71
WEIGHTS = {None: None, "balanced": "balanced", "given": [0.5, 2.0, 1.25]}


def rows(classes, seed=0):
    """Features of overlapping classes with different frequencies."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, ROWS, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    features = random.normal(size=(ROWS, WIDTH)) + random.normal(size=(classes, WIDTH))[labels]
    return features, labels


def fitted(classes, features, labels, **settings):
    head = Logistic(WIDTH, classes, **settings).double()
    head.fit(torch.tensor(features), torch.tensor(labels))
    return head


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("weighted", WEIGHTS)
@pytest.mark.parametrize(("classes", "c"), [(2, 0.01), (2, 1), (3, 0.3)])
def test_probabilities_are_scikit_learns(classes, c, weighted, standardise):
    features, labels = rows(classes)
    if standardise:  # different scales and a constant feature
        features = features * np.logspace(-2, 2, WIDTH) + 5
        features[:, 3] = 7.0
    weights = WEIGHTS[weighted][:classes] if weighted == "given" else weighted
    head = fitted(classes, features, labels, c=c, class_weight=weights, standardise=standardise)
    # For two classes scikit-learn trains one vector, the difference of ours, whose penalty is half of ours.
    given = dict(enumerate(weights)) if weighted == "given" else weights
    oracle = LogisticRegression(C=c * 2 if classes == 2 else c, class_weight=given, tol=1e-10, max_iter=10_000)
    oracle = make_pipeline(StandardScaler(), oracle) if standardise else oracle
    found = F.softmax(head.scores(torch.tensor(features)), -1).numpy()
    assert np.abs(found - oracle.fit(features, labels).predict_proba(features)).max() < 1e-6


def test_features_in_pieces_give_the_same_fit(monkeypatch):
    features, labels = rows(3)
    whole = fitted(3, features, labels, standardise=True)
    monkeypatch.setattr("minillm.adapt.logistic.PIECE", 13)
    pieces = fitted(3, features, labels, standardise=True)
    assert_close(pieces.scores(torch.tensor(features)), whole.scores(torch.tensor(features)), "difference")


def test_a_second_fit_does_not_depend_on_the_first():
    (features, labels), (others, other_labels) = rows(3), rows(3, seed=1)
    head = fitted(3, others, other_labels)
    head.fit(torch.tensor(features), torch.tensor(labels))
    assert torch.equal(head.weight, fitted(3, features, labels).weight)


def test_labels_and_settings_that_cannot_be_fitted_are_refused():
    features, labels = torch.randn(5, WIDTH), torch.tensor([0, 1, 2, 1, 0])
    with pytest.raises(InputError, match="all training rows have the same label"):
        Logistic(WIDTH, 3).fit(features, torch.ones(5, dtype=torch.long))
    with pytest.raises(InputError, match=r"labels must be integers in \[0, 1\]"):
        Logistic(WIDTH, 2).fit(features, labels)
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        Logistic(WIDTH, 1)
    for weights in ("even", [1.0, 2.0], [1.0, 2.0, -1.0]):
        with pytest.raises(InputError, match="class_weight must be 'balanced' or 3 numbers >= 0"):
            Logistic(WIDTH, 3, class_weight=weights)
    with pytest.raises(InputError, match="5 rows of features do not fit 4 labels"):
        Logistic(WIDTH, 3).fit(features, labels[:4])
