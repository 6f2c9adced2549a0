"""The fixed division of rows, and tasks from a user's file."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.reviews import reviews_task
from minillm.data.tables import read_rows, table_task
from minillm.data.tasks import LabelledText, Task, divide

ROWS = [LabelledText(f"text {index}", index % 2) for index in range(8530)]
OPTIONS = {"text_column": "review", "label_column": "verdict", "prompt": "{text} is", "train": 4, "test": 3}


def test_the_reviews_are_divided_as_in_the_benchmarks_of_the_peers():
    train, validation, test = divide(ROWS, 500, 400)
    shuffled = list(ROWS)
    random.Random(0).shuffle(shuffled)
    assert (train, validation, test) == (shuffled[1000:1500], shuffled[400:1000], shuffled[:400])


@given(st.integers(7, 1500), st.integers(2, 400), st.integers(2, 400))
def test_the_parts_are_disjoint_and_have_their_sizes(count, train, test):
    if train + test >= count:
        with pytest.raises(InputError, match="too few"):
            divide(ROWS[:count], train, test)
        return
    parts = divide(ROWS[:count], train, test)
    assert [len(parts[0]), len(parts[2])] == [train, test]
    assert len(parts[1]) >= 1
    assert len({row.text for part in parts for row in part}) == sum(len(part) for part in parts)


def test_validation_and_test_do_not_depend_on_the_number_of_training_rows():
    small, large = divide(ROWS, 10, 400), divide(ROWS, 500, 400)
    assert small[1:] == large[1:]
    assert small[0] == large[0][:10]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_becomes_a_task(tmp_path, suffix):
    rows = [{"review": f'so "{n}",\ngood', "verdict": "pos" if n % 3 else "neg"} for n in range(12)]
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        quoted = [f'"{row["review"].replace(chr(34), chr(34) * 2)}",{row["verdict"]}' for row in rows]
        path.write_text("review,verdict\n" + "\n".join(quoted) + "\n")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    task = table_task(path, labels=None, **OPTIONS)
    assert task.answers == (" neg", " pos")
    assert {row for part in (task.train, task.validation, task.test) for row in part} == {
        LabelledText(row["review"], int(row["verdict"] == "pos")) for row in rows
    }
    assert table_task(path, labels=("bad", "good"), **OPTIONS).answers == (" bad", " good")


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("review,verdict\na,1\n", {"text_column": "words"}, "line 2: no column 'words'; columns: review, verdict"),
        ("review,verdict\n" + "a,1\n" * 9, {}, "must have at least 2 classes and fewer than rows, got 1 in 9 rows"),
        ("review,verdict\n" + "a,1\nb,0\n" * 9, {"labels": ("x",)}, "1 labels are given for the 2 classes: 0, 1"),
        (
            "review,verdict\n" + "a,1\nb,0\n" * 3,
            {"train": 50},
            "has 6 rows: too few for 50 to train on and 3 to test on; give at least 54 rows",
        ),
        ("review,verdict\n" + "a,1\nb,0\n" * 9, {"prompt": "Is it good?"}, "has no {text}"),
        ("review,verdict\na,1\na\n", {}, "line 3: no value in column 'verdict'"),
        ("review,verdict\na,1\na,\n", {}, "line 3: no value in column 'verdict'"),
        ("review;verdict\na;1\n", {}, "columns: review;verdict; columns must be separated by commas"),
        ("review,verdict\n", {}, "has no rows"),
        ("review,verdict\na,1\nb,2\n", {}, "and fewer than rows, got 2 in 2 rows"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path, text, changes, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        table_task(path, **{"labels": None, **OPTIONS, **changes})
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_other_files_than_tables_are_refused(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"review": "a", "verdict": 1}\n\n{"review": b\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "bytes.csv").write_bytes(b"review,verdict\n\xff\xfe,1\n")
    for name, message in {
        "broken.jsonl": r"broken\.jsonl, line 3: not JSON \(Expecting value, column 12\)",
        "list.jsonl": "line 1: every line must be a JSON object",
        "bytes.csv": "is not a readable file in UTF-8",
        "none.csv": "cannot be read",
        "mine.parquet": "must be a .csv or .jsonl file",
    }.items():
        with pytest.raises(InputError, match=message):
            table_task(tmp_path / name, labels=None, **OPTIONS)


def test_reviews_are_the_rows_of_rotten_tomatoes_in_file_order(tmp_path):
    path = tmp_path / "reviews.csv"
    lines = [f"sentence {n},{n % 2},{'imdb' if n % 5 == 0 else 'rotten_tomatoes'}" for n in range(40)]
    path.write_text("text,label,source\n" + "\n".join(lines))
    task = reviews_task(path, 9, 7)
    rows = [LabelledText(f"sentence {n}", n % 2) for n in range(40) if n % 5]
    random.Random(0).shuffle(rows)
    assert (task.test, task.train) == (rows[:7], rows[-9:])
    assert task.answers == (" negative", " positive")


@pytest.mark.parametrize(("name", "text"), [("mine.csv", "text,label\na,1\n"), ("mine.jsonl", '{"text": "a"}')])
def test_a_byte_order_mark_is_not_part_of_a_column_name(tmp_path, name, text):
    (tmp_path / name).write_text(text, "utf-8-sig")
    assert next(read_rows(tmp_path / name))[1]["text"] == "a"


def test_a_task_of_one_class_is_refused():
    same = [LabelledText("a", 1)] * 3
    with pytest.raises(InputError, match="train rows of t are all of one class"):
        Task("t", "{text}", (" a", " b"), same, same, same)
