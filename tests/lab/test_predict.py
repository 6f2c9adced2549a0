"""`minillm predict`: every format in and out, chunks, an evaluation, wrong input."""

import csv
import io
import json
import re

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from minillm import DecoderConfig, InputError, TextClassifier, save
from minillm.cli import main
from minillm.lab import predict
from minillm.lab.evaluation import evaluated, shown, wilson
from minillm.prompting import prompt_cache
from minillm.training.tokenizers import byte_pairs
from tests.decoders import random_decoder

TEXTS = [f"{'so ' * (n % 4)}{word} {n}" for n in range(4) for word in ("good", "bad")]
LABELS = ["yes", "no"] * 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Saved classifiers, and tables of their training rows."""
    place = tmp_path_factory.mktemp("place")
    decoder = random_decoder(DecoderConfig.tiny(vocabulary=257, context_length=256)).float()
    save(decoder, byte_pairs([], 257), place / "base")
    for method in ("zero-shot", "few-shot", "features", "lora"):
        options = {"prompt": "{text}:", "shots": 2, "r": 2, "epochs": 1}
        fitted = TextClassifier(base=place / "base", method=method, device="cpu", **options).fit(TEXTS, LABELS)
        fitted.save(place / method)
    rows = enumerate(zip(TEXTS, LABELS, strict=True))
    quoted = [f'{n};"{text}; ""x""";{label}\n' for n, (text, label) in rows]
    (place / "mine.csv").write_text("number;review;label\n" + "".join(quoted))
    (place / "mine.jsonl").write_text(
        "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS))
    )
    (place / "long.csv").write_text(f"text,label\na,yes\n{'long ' * 99},no\n")
    (place / "odd.csv").write_text("text,label\na,yes\nb,maybe\n")
    (place / "cut.csv").write_text('text,label\na,yes\nb,"no\n')
    (place / "short.csv").write_text("text,label\na,yes\nb\n")
    (place / "none.csv").write_text("text,label\n")
    (place / "binary.csv").write_bytes(bytes(range(256)))
    (place / "empty.txt").write_text("a\n\nb\n")
    (place / "later.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": "yes"}\n')
    (place / "folder").mkdir()
    return place


@pytest.fixture
def given(monkeypatch):
    """Gives a text as standard input, and makes chunks of three rows."""
    monkeypatch.setattr(predict, "CHUNK", 3)
    return lambda text: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def expected(place, method, texts):
    classifier = TextClassifier.load(place / method)
    shares = classifier.predict_proba(texts)
    return list(zip(classifier.predict(texts).tolist(), shares.max(-1).tolist(), strict=True))


@pytest.mark.parametrize("method", ["zero-shot", "few-shot", "features", "lora"])
def test_a_line_of_standard_input_gives_a_line_in_the_same_order(place, command, given, method):
    given("\n".join(TEXTS) + "\n")
    lines = [line.split("\t") for line in command("predict", method).splitlines()]
    for (label, share), (best, most) in zip(lines, expected(place, method, TEXTS), strict=True):
        assert label == best
        assert float(share) == pytest.approx(most, abs=1e-5)
    (place / "mine.txt").write_text("\r\n".join(TEXTS))
    assert [line.split("\t") for line in command("predict", method, "mine.txt").splitlines()] == lines
    assert not (place / "features/features").exists(), "the features of these texts are not stored"


def test_a_table_keeps_its_columns_and_its_delimiter(place, command, given):
    printed = command("predict", "lora", "mine.csv", "--text-column", "review", "--probabilities")
    table = (place / "mine.csv").read_text()
    rows, before = ([*csv.DictReader(io.StringIO(text), delimiter=";")] for text in (printed, table))
    new = [f"predicted_{name}" for name in ("label", "probability", "probability_no", "probability_yes")]
    assert list(rows[0]) == ["number", "review", "label", *new]
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    found = expected(place, "lora", [row["review"] for row in before])
    assert [row["predicted_label"] for row in rows] == [label for label, _ in found]
    shares = np.array([[float(row[name]) for name in new[1:]] for row in rows])
    assert shares[:, 0] == pytest.approx([share for _, share in found], abs=1e-5)
    assert np.array_equal(shares[:, 0], shares[:, 1:].max(-1))
    given(table)
    assert command("predict", "lora", "-", "--format", "csv", "--text-column", "review", "--probabilities") == printed


def test_json_lines_and_a_file(place, command, given):
    printed = command("predict", "lora", "mine.jsonl", "--out", "out.jsonl")
    assert printed == ""
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert [(row["text"], row["n"]) for row in rows] == [(text, n) for n, text in enumerate(TEXTS)]
    assert [row["label"] for row in rows] == [label for label, _ in expected(place, "lora", TEXTS)]
    given("\n".join(TEXTS))
    lines = [json.loads(line) for line in command("predict", "lora", "--json").splitlines()]
    assert lines == [{name: row[name] for name in ("text", "label", "probability")} for row in rows]


def test_the_start_of_the_prompts_is_processed_once(place, command, given, monkeypatch):
    made = []
    in_context = prompt_cache.InContext
    monkeypatch.setattr(prompt_cache, "InContext", lambda decoder, ids: made.append(ids) or in_context(decoder, ids))
    given("\n".join(TEXTS))
    command("predict", "few-shot")
    assert len(made) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nothing", "mine.jsonl"), "nothing is not an adapter: there is no such directory"),
        (("base", "mine.jsonl"), "base is not an adapter: it has no file adapter.json"),
        (("lora", "nothing.csv"), "nothing.csv cannot be read: No such file"),
        (("lora", "base"), "base must be a .csv, .tsv or .jsonl file"),
        (("lora", "mine.csv"), "mine.csv, line 2: no column 'text'; columns: number, review, label"),
        (("lora", "none.csv"), "none.csv has no rows"),
        (("lora", "cut.csv"), "cut.csv, line 3: open or misplaced double quotes"),
        (("lora", "short.csv"), "short.csv, line 3: 1 values for the 2 columns"),
        (("lora", "binary.csv"), "binary.csv, line 2: not in utf-8"),
        (("lora", "empty.txt"), "empty.txt, line 2: an empty line; every line must be a text"),
        (("lora", "long.csv"), "long.csv, line 3 ('long long"),
        (("lora", "later.jsonl"), "later.jsonl, line 2: the column 'label' would be overwritten; rename it"),
        (("lora", "mine.jsonl", "--evaluate", "label"), "line 1: no column 'label'; columns: text, n"),
        (("lora", "odd.csv", "--evaluate", "label"), "line 3: the label 'maybe' is not a class; there are: no, yes"),
        (("lora", "mine.jsonl", "--delimiter", ";"), "has JSON lines, which have no delimiter"),
        (("lora", "mine.jsonl", "--out", "base"), "base exists; give another --out"),
        (("lora", "mine.jsonl", "--out", "folder"), "folder is a directory; --out must be a file"),
        (("lora", "mine.jsonl", "--base", "tiny"), "lora was trained with another tokenizer"),
        (("lora", "mine.jsonl", "--truncate", "middle"), "unknown value for --truncate: 'middle'"),
        (("lora", "mine.jsonl", "two.jsonl"), "unexpected argument: 'two.jsonl'"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_written(place, words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(predict, "CHUNK", 1)
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["minillm", "predict", *words])
    with pytest.raises(SystemExit) as end:
        main()
    printed, complaint = capsys.readouterr()
    assert (end.value.code, printed) == (2, "")
    assert sentence in complaint.splitlines()[-1]
    assert len(complaint.splitlines()) <= 2, "a line about the adapter comes first, once it is loaded"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "standard input has no rows"),
        (b"a\n\n", "standard input, line 2: an empty line"),
        (b"a\n\xff\n", "standard input, line 2: not in utf-8"),
        (b"a\n\0\n", "standard input, line 2: a NUL character"),
    ],
)
def test_standard_input_that_is_no_text_is_refused(place, content, sentence, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    monkeypatch.setattr("sys.argv", ["minillm", "predict", "features"])
    with pytest.raises(SystemExit, match="2"):
        main()
    printed, complaint = capsys.readouterr()
    assert printed == ""
    assert sentence in complaint


ADAPT = ("adapt", "--base", "base", "--epochs", "1", "--device", "cpu")


def test_an_adapter_for_free_answers_is_refused_with_the_command_for_it(place, command):
    (place / "free.csv").write_text("asked,answer\n" + "".join(f"a {n},b\n" for n in range(9)))
    columns = ("--prompt-column", "asked", "--answer-column", "answer", "--train", "4", "--test", "2")
    printed = command(*ADAPT, "--data", "free.csv", *columns, "--method", "output", "--out", "free")
    assert printed.endswith("\nnext: minillm generate --base base --adapter free TEXT\n")
    with pytest.raises(InputError, match=r"free is no classifier: .*; use it with `minillm generate --adapter free`"):
        TextClassifier.load("free")


def test_a_directory_of_adapt_predicts_the_values_of_its_label_column(place, command):
    rows = [f"{text} {n},{stars}" for n in range(8) for text, stars in (("good", 5), ("bad", 1))]
    (place / "stars.csv").write_text("review,stars\n" + "\n".join(rows) + "\n")
    columns = ("--text-column", "review", "--label-column", "stars", "--labels", "1=bad,5=good")
    printed = command(*ADAPT, "--data", "stars.csv", *columns, "--method", "output", "--out", "my stars")
    assert re.search(
        r"\naccuracy \S+ ± \S+, majority baseline 0.500\nnext: minillm predict 'my stars' FILE\n$", printed
    )
    predicted = [row["label"] for row in csv.DictReader(io.StringIO(command("predict", "my stars", "stars.csv")))]
    measured = json.loads(command("predict", "my stars", "stars.csv", "--evaluate", "stars", "--json"))
    assert list(measured["classes"]) == ["1", "5"]
    right = [label == row[-1] for label, row in zip(predicted, rows, strict=True)]
    assert measured["accuracy"] == sum(right) / len(rows)
    shares = f"accuracy {measured['accuracy']:.3f} ± {measured['standard_error']:.3f}, majority baseline 0.500"
    assert shares in command("predict", "my stars", "stars.csv", "--evaluate", "stars").splitlines()


def test_an_interrupt_leaves_an_earlier_file_as_it_was(place, given, monkeypatch):
    (place / "kept.jsonl").write_text("earlier")
    found = TextClassifier.load(place / "features").score_rows

    def interrupted(self, rows, **options):
        if "so" in rows[0].text:
            raise KeyboardInterrupt
        return found(rows)

    monkeypatch.setattr(TextClassifier, "score_rows", interrupted)
    monkeypatch.chdir(place)
    words = ["predict", "features", "mine.jsonl", "--out", "kept.jsonl", "--overwrite"]
    monkeypatch.setattr("sys.argv", ["minillm", *words])
    with pytest.raises(SystemExit, match="130"):
        main()
    assert (place / "kept.jsonl").read_text() == "earlier"
    assert not list(place.glob(".kept*"))


def test_the_measures_are_those_of_scikit_learn():
    names = ["a", "b", "c", "never", "unseen"]
    labels, predicted = np.random.default_rng(0).integers(0, 3, (2, 50))
    predicted[0] = 3
    counts = confusion_matrix(labels, predicted, labels=range(5))
    found = evaluated(counts.tolist(), names)
    precision, recall, f1, rows = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    for n, name in enumerate(names):
        expected = {"precision": precision[n], "recall": recall[n], "f1": f1[n], "rows": rows[n]}
        assert found["classes"][name] == pytest.approx(expected)
    assert found["accuracy"] == (labels == predicted).mean()
    assert found["majority_baseline"] == rows.max() / 50
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_an_evaluation_fits_on_a_terminal():
    assert (
        shown(evaluated([[166, 34], [31, 169]], ["negative", "positive"]))
        == """\
label       precision  recall     F1  rows
------------------------------------------
1 negative      0.843   0.830  0.836   200
2 positive      0.833   0.845  0.839   200

predicted as    1    2
----------------------
1 negative    166   34
2 positive     31  169

accuracy 0.838 ± 0.018, majority baseline 0.500
95 % interval 0.798 to 0.870, 400 rows"""
    )
    wide = shown(evaluated([[1000] * 30] * 30, [f"{n} {'long ' * 20}" for n in range(30)]))
    assert "the confusion matrix is wider than 80 columns" in wide
    assert max(map(len, wide.splitlines())) <= 80
