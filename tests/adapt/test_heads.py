"""Heads find what scikit-learn finds, from features in one piece or in many."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from minillm import InputError
from minillm.adapt.heads import HEADS, make_head
from tests.tolerances import assert_close

WIDTH, ROWS = 11, 71
SMALL = {"mlp": {"hidden": 3, "c": 0.1}}
WEIGHTS = {None: None, "balanced": "balanced", "given": [0.5, 2.0, 1.25]}


def rows(classes, seed=0):
    """Features in which the classes lie apart, but not quite, and are not equally frequent."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, ROWS, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    features = random.normal(size=(ROWS, WIDTH)) + random.normal(size=(classes, WIDTH))[labels]
    return features, labels


def fitted(name, classes, features, labels, **settings):
    head = make_head(name, WIDTH, classes, settings).double()
    head.fit(torch.tensor(features), torch.tensor(labels))
    return head


def class_weight(name, classes):
    """As our heads take it, and as scikit-learn does."""
    weights = WEIGHTS[name][:classes] if name == "given" else name
    return weights, dict(enumerate(weights)) if name == "given" else weights


@pytest.mark.parametrize("weighted", WEIGHTS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("c", [0.01, 1])
def test_a_logistic_regression_is_scikit_learns(classes, c, weighted):
    (features, labels), (ours, theirs) = rows(classes), class_weight(weighted, classes)
    head = fitted("logistic", classes, features, labels, c=c, class_weight=ours)
    # Of two classes scikit-learn trains one vector, the difference of ours, whose penalty is then half of ours.
    oracle = LogisticRegression(C=c * 2 if classes == 2 else c, class_weight=theirs, tol=1e-10, max_iter=10_000)
    mine = F.softmax(head.scores(torch.tensor(features)), -1).numpy()
    assert np.abs(mine - oracle.fit(features, labels).predict_proba(features)).max() < 1e-6


def test_a_logistic_regression_on_standardised_features_is_scikit_learns():
    features, labels = rows(3)
    features = features * np.logspace(-2, 2, WIDTH) + 5
    features[:, 3] = 7.0
    head = fitted("logistic", 3, features, labels, c=0.3, standardise=True)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000))
    mine = F.softmax(head.scores(torch.tensor(features)), -1).numpy()
    assert np.abs(mine - oracle.fit(features, labels).predict_proba(features)).max() < 1e-6


@pytest.mark.parametrize("weighted", WEIGHTS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_ridge_is_scikit_learns(classes, weighted):
    (features, labels), (ours, theirs) = rows(classes), class_weight(weighted, classes)
    head = fitted("ridge", classes, features + 3, labels, alpha=2.5, class_weight=ours)
    oracle = RidgeClassifier(alpha=2.5, class_weight=theirs).fit(features + 3, labels)
    scores, expected = head.scores(torch.tensor(features + 3)).numpy(), oracle.decision_function(features + 3)
    assert_close(scores[:, 1] if classes == 2 else scores, expected, "numpy")


def test_a_centroid_is_scikit_learns():
    features, labels = rows(3)
    others = np.random.default_rng(1).normal(size=(501, WIDTH))
    head = fitted("centroid", 3, features, labels)
    oracle = NearestCentroid().fit(features, labels)
    assert_close(head.centroids, oracle.centroids_, "law")
    assert (head.scores(torch.tensor(others)).argmax(-1).numpy() == oracle.predict(others)).all()


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_scikit_learns(k):
    features, labels = rows(3)
    others = np.random.default_rng(1).normal(size=(51, WIDTH))
    head = fitted("neighbours", 3, features, labels, k=k)
    oracle = KNeighborsClassifier(k).fit(features, labels)
    assert_close(head.scores(torch.tensor(others)), oracle.predict_proba(others), "law")


def test_an_mlp_has_its_minimum_where_scikit_learns_has_it():
    features, labels = rows(3)
    c = 0.3
    # scikit-learn divides everything by the number of rows, penalty included.
    oracle = MLPClassifier(7, activation="tanh", solver="lbfgs", alpha=1 / c, tol=1e-12, max_iter=20_000, max_fun=10**6)
    oracle.fit(features, labels)
    head = make_head("mlp", WIDTH, 3, {"hidden": 7, "c": c}).double()
    start = [parameter.detach().clone() for parameter in head.parameters()]
    with torch.no_grad():
        for linear, weight, bias in zip((head.hidden, head.out), oracle.coefs_, oracle.intercepts_, strict=True):
            linear.weight.copy_(torch.tensor(weight.T))
            linear.bias.copy_(torch.tensor(bias))
    assert_close(F.softmax(head.scores(torch.tensor(features)), -1), oracle.predict_proba(features), "law")
    penalty = (head.hidden.weight.square().sum() + head.out.weight.square().sum()) / 2
    (penalty + c * F.cross_entropy(head(torch.tensor(features)), torch.tensor(labels), reduction="sum")).backward()
    assert max(parameter.grad.abs().max() for parameter in head.parameters()) < 1e-3
    head.fit(torch.tensor(features), torch.tensor(labels))
    assert all(not torch.allclose(p, old) for p, old in zip(head.parameters(), start, strict=True))
    mine = F.cross_entropy(head(torch.tensor(features)), torch.tensor(labels))
    assert abs(mine.item() - -np.log(oracle.predict_proba(features)[range(ROWS), labels]).mean()) < 0.02


def test_an_mlp_tells_apart_what_no_plane_can():
    features = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    found = {}
    for name in ("mlp", "logistic"):
        head = make_head(name, 2, 2, {"c": 100})
        head.fit(features, labels)
        found[name] = (head.scores(features).argmax(-1) == labels).sum().item()
    assert found["mlp"] == 4
    assert found["logistic"] < 4


@pytest.mark.parametrize("name", HEADS)
def test_features_in_pieces_are_the_features_in_one(name, monkeypatch):
    features, labels = rows(3)
    settings = SMALL.get(name, {})
    whole = fitted(name, 3, features, labels, **settings)
    monkeypatch.setattr("minillm.adapt.heads.PIECE", 13)
    pieces = fitted(name, 3, features, labels, **settings)
    # An MLP's descent is a long one, on which rounding grows; the others have one end.
    rung = "difference" if name in ("logistic", "mlp") else "law"
    assert_close(pieces.scores(torch.tensor(features)), whole.scores(torch.tensor(features)), rung)


@pytest.mark.parametrize("name", HEADS)
def test_a_second_fit_forgets_the_first(name):
    (features, labels), (others, their_labels) = rows(3), rows(3, seed=1)
    head = fitted(name, 3, others, their_labels, **SMALL.get(name, {}))
    head.fit(torch.tensor(features), torch.tensor(labels))
    fresh = fitted(name, 3, features, labels, **SMALL.get(name, {}))
    assert torch.equal(head.scores(torch.tensor(features)), fresh.scores(torch.tensor(features)))


def test_what_cannot_be_told_apart_or_is_unknown_is_refused():
    features, labels = torch.randn(5, WIDTH), torch.tensor([0, 1, 2, 1, 0])
    for name in HEADS:
        with pytest.raises(InputError, match="all of one class"):
            make_head(name, WIDTH, 3, {}).fit(features, torch.ones(5, dtype=torch.long))
        with pytest.raises(InputError, match="numbers from 0 to 1"):
            make_head(name, WIDTH, 2, {}).fit(features, labels)
        with pytest.raises(InputError, match="two classes at least"):
            make_head(name, WIDTH, 1, {})
    with pytest.raises(InputError, match="no head 'svm'; there is: logistic"):
        make_head("svm", WIDTH, 2, {})
    with pytest.raises(InputError, match="no setting 'k'; it has: c, class_weight, standardise"):
        make_head("logistic", WIDTH, 2, {"k": 3})
    with pytest.raises(InputError, match="class 1: it has no centroid"):
        make_head("centroid", WIDTH, 3, {}).fit(features, torch.tensor([0, 0, 2, 2, 0]))
    with pytest.raises(InputError, match="the 6 nearest"):
        make_head("neighbours", WIDTH, 3, {"k": 6}).fit(features, labels)
    with pytest.raises(InputError, match="fit them first"):
        make_head("neighbours", WIDTH, 3, {})(features)
    for weights in ("even", [1.0, 2.0], [1.0, 2.0, -1.0]):
        with pytest.raises(InputError, match="class_weight is"):
            make_head("ridge", WIDTH, 3, {"class_weight": weights}).fit(features, labels)
    with pytest.raises(InputError, match="5 rows of features do not fit 4 labels"):
        make_head("ridge", WIDTH, 3, {}).fit(features, labels[:4])
