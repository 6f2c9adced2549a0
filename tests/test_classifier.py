"""`TextClassifier`: fit, predict, save and load with every method; scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import minillm
from minillm import Decoder, DecoderConfig, InputError, TextClassifier
from minillm.classifier import NAMES
from minillm.runtime.reading import sealed
from minillm.training.loop import Loop
from minillm.training.tokenizers import byte_pairs
from tests.decoders import random_decoder

TEXTS = [f"{number} {word}" for number in range(8) for word in ("good", "bad")]
LABELS = ["yes", "no"] * 8
BASE = (
    random_decoder(DecoderConfig.tiny(vocabulary=257, context_length=256)).float(),
    byte_pairs([], 257),
)
SMALL = {"r": 2, "layers": 1, "epochs": 1, "learning_rate": 1e-2, "shots": 2, "init_text": "a label"}


def classifier(method="lora", **params):
    return TextClassifier(**{"base": BASE, "method": method, "prompt": "{text}:", **SMALL, **params})


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((name, "float32") for name in NAMES), *((name, "bfloat16") for name in ("features", "soft-prompt", "full"))],
)
def test_every_method_fits_and_is_the_same_after_loading(method, precision, tmp_path):
    fitted = classifier(method, precision=precision)
    assert fitted.fit(TEXTS, LABELS) is fitted
    assert fitted.classes_.tolist() == ["no", "yes"]
    probabilities = fitted.predict_proba(TEXTS)
    assert np.allclose(probabilities.sum(-1), 1)
    assert np.array_equal(fitted.predict(TEXTS), fitted.classes_[probabilities.argmax(-1)])
    assert fitted.score(TEXTS, LABELS) == np.mean(fitted.predict(TEXTS) == LABELS)
    fitted.save(tmp_path)
    loaded = TextClassifier.load(tmp_path, base=BASE)
    assert loaded.get_params() == fitted.get_params()
    assert np.array_equal(loaded.predict_proba(TEXTS), probabilities)


@pytest.mark.parametrize("method", ["zero-shot", "features", "lora"])
def test_texts_are_normalised_as_those_of_tables(method):
    fitted = classifier(method).fit(["e\u0301", *TEXTS], ["yes", *LABELS])
    assert np.array_equal(*(fitted.predict_proba([text]) for text in ("caf\u00e9", "cafe\u0301")))


@pytest.mark.parametrize("method", ["features", "last-blocks"])
def test_it_learns(method):
    assert classifier(method, epochs=20).fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1


def test_the_hidden_states_of_zero_shot_are_the_features(tmp_path, monkeypatch):
    """With a store they are computed once; the base's own head on them gives the scores of the whole decoder."""
    answers = {"no": "n", "yes": "y"}
    expected = classifier("zero-shot", answers=answers).fit(TEXTS, LABELS).predict_proba(TEXTS)
    zero_shot = classifier("zero-shot", answers=answers, store=tmp_path).fit(TEXTS, LABELS)
    assert np.allclose(zero_shot.predict_proba(TEXTS), expected, rtol=1e-5)
    stored = len(list(tmp_path.iterdir()))
    monkeypatch.setattr(Decoder, "run_blocks", None)
    fitted = classifier("features", answers=answers, store=tmp_path).fit(TEXTS, LABELS)  # the same texts
    assert len(fitted.predict(TEXTS)) == len(TEXTS)
    assert len(list(tmp_path.iterdir())) == stored == 1
    assert fitted.training_.seconds > 0, "the seconds of zero-shot"


@pytest.mark.parametrize("method", ["full", "last-blocks", "output"])
def test_it_learns_labels_that_begin_alike(method):
    labels = ["not", "not sure"] * 8
    assert classifier(method, epochs=25, learning_rate=2e-2).fit(TEXTS, labels).score(TEXTS, labels) == 1


@pytest.mark.parametrize(
    ("method", "refused"), [("zero-shot", True), ("lora", True), ("output", False), ("features", False)]
)
def test_a_classifier_saved_before_the_end_of_answers_was_scored_is_refused(method, refused, tmp_path):
    for labels in ([1, 2], [1, 10]):
        fitted = classifier(method).fit(TEXTS, labels * 8)
        fitted.save(tmp_path)
        saved = json.loads((tmp_path / "classifier.json").read_text())
        assert saved.pop("scores_end") is True
        del saved["sha256"]
        (tmp_path / "classifier.json").write_text(sealed(saved))
        if refused and labels == [1, 10]:
            with pytest.raises(InputError, match=r"did not score the end of answers.* \( 1,  10\): fit it again"):
                TextClassifier.load(tmp_path, base=BASE)
            continue
        loaded = TextClassifier.load(tmp_path, base=BASE)
        assert np.array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


@pytest.mark.parametrize(
    "labels", [[3, 1], [True, False], [("a", 1), ("b", None)], ["b", 2], [None, frozenset({1})]], ids=str
)
def test_labels_keep_their_types(labels, tmp_path):
    fitted = classifier("features").fit(TEXTS, labels * 8)
    assert set(fitted.predict(TEXTS).tolist()) == set(labels)
    if frozenset({1}) in labels:
        with pytest.raises(InputError, match="JSON cannot hold the labels"):
            fitted.save(tmp_path)
        assert not list(tmp_path.iterdir())
        return
    fitted.save(tmp_path)
    loaded = TextClassifier.load(tmp_path, base=BASE)
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    assert [type(label) for label in loaded.classes_.tolist()] == [type(label) for label in fitted.classes_.tolist()]


def test_validation_rows_select_the_epoch():
    fitted = classifier("lora", epochs=3).fit(TEXTS, LABELS, validation=(TEXTS[:4], LABELS[:4]))
    accuracies = fitted.training_.chosen["validation"]
    assert len(accuracies) == 3
    assert fitted.score(TEXTS[:4], LABELS[:4]) == max(accuracies)


def test_few_shot_prompts_contain_texts_with_their_answers():
    fitted = classifier("few-shot", answers={"yes": " fine", "no": " poor"}, end=".").fit(TEXTS, LABELS)
    assert fitted.classes_.tolist() == ["yes", "no"], "in the order of the answers"
    first, second, asked = fitted.template_.render("so").split("\n\n")
    assert {first.split(":")[1], second.split(":")[1]} == {" fine.", " poor."}
    assert asked == "so:"


def test_a_base_can_be_a_name_and_the_default_prompt_is_neutral(tmp_path):
    fitted = TextClassifier(base="tiny", method="zero-shot").fit([" How 2 3", " 5"], ["sum", "number"])
    assert fitted.template_.render("7") == "Text: 7\nLabel:"
    fitted.save(tmp_path)
    assert np.array_equal(TextClassifier.load(tmp_path).predict_proba(["7"]), fitted.predict_proba(["7"]))


LONG = [*TEXTS[:15], "good " * 60]


@pytest.mark.parametrize("method", NAMES)
def test_a_text_that_is_too_long_is_refused_before_training_or_cut(method, monkeypatch, capsys):
    monkeypatch.setattr("minillm.classifier.balanced_shots", lambda task, *_: task.train[:2])
    monkeypatch.setattr(Loop, "step", lambda *_: pytest.fail("it has trained"))
    sentence = (
        r"{}texts\[15\] \('good good.*has \d+ tokens, and \d+ fit \(a context of 256.*; 1 of {} texts are too long"
    )
    for texts, held, error in (
        (LONG, TEXTS, sentence.format("", 32)),
        (TEXTS, LONG, sentence.format("validation ", 32)),
    ):
        with pytest.raises(InputError, match=error):
            classifier(method).fit(texts, LABELS, validation=(held, LABELS))
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    monkeypatch.setattr("minillm.classifier.balanced_shots", lambda task, *_: task.train[:2])
    fitted = classifier(method, truncate="left").fit(LONG, LABELS)
    assert "truncated (left): 1 of 16 texts" in capsys.readouterr().err
    fitted.predict(["good " * 200])
    with pytest.raises(InputError, match=r"^texts\[1\]"):
        fitted.set_params(truncate="error").predict(["good", "good " * 200])


def test_long_examples_are_refused_or_cut(monkeypatch, tmp_path):
    monkeypatch.setattr("minillm.classifier.balanced_shots", lambda task, *_: task.train[-2:])
    with pytest.raises(InputError, match=r"the prompt without its text has .* fewer or shorter examples"):
        classifier("few-shot").fit(LONG, LABELS)
    fitted = classifier("few-shot", truncate="right").fit(LONG, LABELS)
    cut = fitted.template_.shots[1].text
    assert len(cut) > 50
    assert LONG[15].startswith(cut)
    fitted.save(tmp_path)
    loaded = TextClassifier.load(tmp_path, base=BASE)
    assert np.array_equal(loaded.predict_proba(LONG), fitted.predict_proba(LONG))


def test_the_base_is_never_modified():
    before = {name: weight.clone() for name, weight in BASE[0].named_parameters()}
    classifier("full").fit(TEXTS, LABELS)
    assert all(torch.equal(weight, before[name]) for name, weight in BASE[0].named_parameters())


@pytest.mark.parametrize(
    ("params", "texts", "labels", "sentence"),
    [
        ({"method": "lorra"}, TEXTS, LABELS, "unknown method: 'lorra'; did you mean lora"),
        ({"prompt": "text"}, TEXTS, LABELS, r"has no \{text\}"),
        ({"answers": {"yes": " a", "no": " a"}}, TEXTS, LABELS, "2 different labels, got a, a"),
        ({"answers": {"yes": " a", "nein": " b"}}, TEXTS, LABELS, "there is no class 'no'; there are: yes, nein"),
        ({"seed": -1}, TEXTS, LABELS, "seed must be"),
        ({"base": (BASE[0], None)}, TEXTS, LABELS, "has no tokenizer"),
        ({}, "good", ["yes"], "texts must be a list"),
        ({}, [], [], "texts must be a list"),
        ({}, iter(["good", float("nan")]), ["yes", "no"], "got nan"),
        ({}, TEXTS[:3], LABELS[:2], "got 3 texts and 2 labels"),
        ({}, TEXTS[:2], ["yes", "yes"], "2 different labels, got yes"),
        ({}, TEXTS[:2], iter([["yes"], ["no"]]), "labels must be hashable"),
    ],
)
def test_wrong_input_is_refused(params, texts, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        classifier(**params).fit(texts, labels)


def test_answers_with_the_same_tokens_are_refused():
    """They would have the same score and no gradient, so nothing could be learned."""
    words = minillm.training.tokenizers.words([" good bad :"])
    with pytest.raises(InputError, match="the answers ' fine' and ' poor' are the same to this base's tokenizer"):
        classifier(base=(BASE[0], words)).fit(TEXTS, ["fine", "poor"] * 8)


def test_a_base_that_does_not_know_the_words_is_refused():
    with pytest.raises(InputError, match="tokenizer knows less than half of the words, as in 'a joyful film'"):
        TextClassifier(base="tiny").fit(["a joyful film", "a dreadful bore"], ["good", "bad"])


def test_predict_and_save_need_fit(tmp_path):
    for use in (lambda one: one.predict(TEXTS), lambda one: one.score(TEXTS, LABELS), lambda one: one.save(tmp_path)):
        with pytest.raises(InputError, match="not fitted: call fit first"):
            use(classifier())


def test_a_failed_fit_is_not_fitted():
    fitted = classifier("zero-shot").fit(TEXTS, LABELS)
    with pytest.raises(InputError, match="must be at most"):
        fitted.set_params(method="lora", r=99).fit(TEXTS, LABELS)
    with pytest.raises(InputError, match="not fitted"):
        fitted.predict(TEXTS)


def test_a_wrong_parameter_gets_a_hint():
    with pytest.raises(InputError, match=r"unknown parameter: 'epoch'; did you mean epochs\?"):
        classifier().set_params(epoch=3)


def _edited(directory):
    path = directory / "classifier.json"
    path.write_text(path.read_text().replace('"yes"', '"yep"'))


def _of_another_adapter(directory):
    classifier("dora").fit(TEXTS, LABELS).method_.save(directory)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_edited, "was damaged or edited"),
        (_of_another_adapter, "is not the one that was saved with it"),
        (lambda directory: (directory / "classifier.json").write_text("[]"), "must be a JSON object"),
        (lambda directory: (directory / "classifier.json").unlink(), "is no classifier: it has no file"),
        (lambda directory: (directory / "adapter.json").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_directory_is_refused(damage, sentence, tmp_path):
    classifier().fit(TEXTS, LABELS).save(tmp_path)
    with pytest.raises(InputError, match="decoder in memory; pass base"):
        TextClassifier.load(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=sentence):
        TextClassifier.load(tmp_path, base=BASE)


def test_the_parameters_are_saved_as_json(tmp_path):
    classifier(targets=("key",), store=Path("features")).fit(TEXTS, LABELS).save(tmp_path)
    parameters = json.loads((tmp_path / "classifier.json").read_text())["parameters"]
    assert parameters["targets"] == ["key"]
    assert (parameters["base"], parameters["store"], parameters["r"]) == (None, "features", 2)


@pytest.mark.slow
def test_scikit_learn_accepts_it():
    sklearn = pytest.importorskip("sklearn")
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = classifier("features")
    copy = sklearn.base.clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    assert copy.base[0] is BASE[0], "a base is shared"
    assert sklearn.base.is_classifier(model)
    assert cross_val_score(model, TEXTS, LABELS, cv=2).tolist() == [1, 1]
    assert cross_val_score(model, TEXTS, LABELS, cv=2, scoring="roc_auc").tolist() == [1, 1]
    search = GridSearchCV(model, {"method": ["zero-shot", "features"]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_ == {"method": "features"}
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, model).fit([text.upper() for text in TEXTS], LABELS)
    assert pipeline.score(TEXTS, LABELS) == 1


def test_train_learns_free_answers():
    decoder, tokenizer = BASE
    method = minillm.adapt.FineTune(decoder)
    pairs = [("2 + 2 =", " four"), ("1 + 2 =", " three")]
    history = minillm.train(method, tokenizer, pairs, epochs=40, learning_rate=1e-2)
    assert history.losses[-1] < 0.1 < history.losses[0]
    for prompt, answer in pairs:
        ids = torch.tensor([tokenizer.encode(prompt)])
        written = minillm.generate(method, ids, max_new_tokens=8, stop=[tokenizer.eos])[0, ids.shape[1] :].tolist()
        assert tokenizer.decode(written[: written.index(tokenizer.eos)]) == answer
    with pytest.raises(InputError, match=r"no \(prompt, answer\) pairs"):
        minillm.train(method, tokenizer, [])
