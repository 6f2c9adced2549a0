"""Tasks from a user's table: classes and their answers, types of labels, stratified parts."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.conversation_tables import table_conversations
from minillm.data.conversations import exchange
from minillm.data.table_tasks import answers_of, in_order, table_task
from minillm.data.tables import Table
from minillm.data.tasks import LabelledText, divide, divide_by_class

OPTIONS = {
    "text_column": "review", "label_column": "verdict", "prompt": "{text} is", "labels": None, "train": 4, "test": 3,
}  # fmt: skip
HEADER = "review,verdict\n"


def task(path, **changes):
    return table_task(Table(path), **{**OPTIONS, **changes})


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_becomes_a_task(tmp_path, suffix):
    rows = [{"review": f'so "{n}",\ngood', "verdict": "pos" if n % 3 else "neg"} for n in range(12)]
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        quoted = [f'"{row["review"].replace(chr(34), chr(34) * 2)}", {row["verdict"]}' for row in rows]
        path.write_text(HEADER + "\n".join(quoted) + "\n")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    found = task(path)
    assert (found.answers, found.values) == ((" neg", " pos"), ("neg", "pos"))
    held = [row for part in (found.train, found.validation, found.test) for row in part]
    assert {(row.text, row.label) for row in held} == {(row["review"], int(row["verdict"] == "pos")) for row in rows}
    lines = {row["review"]: 2 * n + 2 if suffix == "csv" else n + 1 for n, row in enumerate(rows)}
    assert {row.text: row.place for row in held} == {text: f"{path}, line {line}" for text, line in lines.items()}
    assert task(path, labels=("bad", "good")).answers == (" bad", " good")
    assert task(path, labels=("pos=good", "neg=bad")).answers == (" bad", " good")


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("a,1\n", {"text_column": "words"}, "line 2: no column 'words'; columns: review, verdict"),
        ("a,1\n" * 9, {}, "must have at least 2 classes and fewer than rows, got 1 in 9 rows"),
        ("a,1\nb,0\n" * 9, {"labels": ("x",)}, "1 labels are given for the 2 classes: 0, 1"),
        ("a,1\nb,0\n" * 9, {"labels": ("0=x", "2=y")}, "the values: 0, 1; got 0=x, 2=y"),
        ("a,1\nb,0\n" * 9, {"labels": ("0=x", "y")}, "the values: 0, 1; got 0=x, y"),
        ("a,1\nb,0\n" * 9, {"labels": ("0=x", "0=y")}, "the values: 0, 1; got 0=x, 0=y"),
        ("a,1\nb,0\n" * 9, {"labels": ("0=x", "1=x")}, "labels must be at least two different non-empty texts"),
        ("a,1\nb,0\n" * 3, {"train": 50}, "has 6 rows: too few for 50 to train on and 3 to test on; give at least 54"),
        ("a,1\nb,0\n" * 9, {"prompt": "Is it good?"}, "has no {text}"),
        ("a,1\nb,2\n", {}, "and fewer than rows, got 2 in 2 rows"),
        ("a,1\nb,1.0\n" * 9, {}, "the labels '1' and '1.0' are the same number"),
        ("a,1\nb,0\n" * 9 + "c,2\n" * 5, {"train": None, "test": None}, "fewer have '2' (5); add or remove rows"),
        (
            'a,1\n"open,1\nb,0\nc",1\nd,0\n',
            {},
            "line 3: a quoted text of several lines contains another row, '\"open,1'",
        ),
        ('a,1\nb,"0\nc,1\n"\n', {}, "line 3: the label in column 'verdict' has a newline"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path, text, changes, message):
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + text)
    with pytest.raises(InputError) as refusal:
        task(path, **changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_text_of_several_lines_is_no_open_quote(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + '"Dear all,\nI came, I saw\nBye",1\nb,0\n' * 6)
    assert task(path).train[0].text in ("Dear all,\nI came, I saw\nBye", "b")


@pytest.mark.parametrize(("odd", "kind"), [('"1"', "string"), ("true", "Boolean"), ("1.5", None)])
def test_a_label_column_has_one_type(tmp_path, odd, kind):
    path = tmp_path / "mine.jsonl"
    rows = [f'{{"review": "a", "verdict": {label}}}' for label in ("1", "0", "1.0", odd) * 3]
    path.write_text("\n".join(rows))
    if kind is None:
        assert task(path).values == ("0", "1", "1.5")
        return
    with pytest.raises(
        InputError, match=rf"line 4: the label in column 'verdict' is a {kind}, and a number in .*line 1"
    ):
        task(path)


def test_numbers_are_in_the_order_of_their_size():
    assert in_order(map(str, range(11, -1, -1))) == tuple(map(str, range(12)))
    assert in_order(["10", "-2.5", "9"]) == ("-2.5", "9", "10")
    assert in_order(["10", "9", "none"]) == ("10", "9", "none")
    assert answers_of(["-1", "9", "10"], ["10=high", "-1 = low", "9=mid=b"]) == (" low", " mid=b", " high")


classes = st.lists(st.integers(6, 60), min_size=2, max_size=5)


def labelled(counts):
    return [LabelledText(f"{label} {n}", label) for label, count in enumerate(counts) for n in range(count)]


@given(classes)
def test_without_sizes_a_tenth_of_each_class_and_at_least_two_rows_are_for_test_and_for_validation(counts):
    parts = divide_by_class(labelled(counts), None, None)
    assert sorted(row for part in parts for row in part) == sorted(labelled(counts))
    train, validation, test = (Counter(row.label for row in part) for part in parts)
    for label, count in enumerate(counts):
        assert test[label] == validation[label] == max(2, count // 10)
        assert train[label] >= 2


@given(classes, st.data())
def test_with_sizes_each_class_has_about_its_share_of_each_part(counts, data):
    total = sum(counts)
    test = data.draw(st.integers(2, total - 4))
    train = data.draw(st.none() | st.integers(2, total - test - 1))
    if train is None and total - test - max(2, total // 10) < 2:
        return
    parts = divide_by_class(labelled(counts), train, test)
    assert len({row for part in parts for row in part}) == sum(map(len, parts))
    assert (len(parts[2]), len(parts[0])) == (test, train or total - test - max(2, total // 10))
    assert parts == divide_by_class(labelled(counts), train, test)
    for part in parts:
        found = Counter(row.label for row in part)
        for label, count in enumerate(counts):
            assert abs(found[label] - len(part) * count / total) <= 1 + len(counts) / 2


def test_one_size_alone_leaves_a_tenth_for_each_other_part():
    rows = labelled([50, 50])
    assert [len(part) for part in divide(rows, None, None)] == [80, 10, 10]
    assert [len(part) for part in divide(rows, None, 30)] == [60, 10, 30]
    assert [len(part) for part in divide_by_class(rows, 70, None)] == [70, 20, 10]


def test_free_answers_are_read_from_the_same_tables(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("asked;answer\n" + "".join(f"{n} + 1;{n + 1}\n" for n in range(20)))
    found = table_conversations(Table(path), "answers", ("asked", "answer"), None, None, "{text} =")
    assert found is not None
    assert [len(part) for part in (found.train, found.validation, found.test)] == [16, 2, 2]
    rows = sorted([*found.train, *found.validation, *found.test], key=lambda row: int(row.messages[1]["content"]))
    assert rows == [exchange(f"{n} + 1", f"{n + 1}", "{text} =", f"{path}, line {n + 2}") for n in range(20)]
    assert "delimiter ';'" in found.note
