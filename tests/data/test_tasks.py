"""The fixed division of rows, and the reviews."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.reviews import reviews_task
from minillm.data.tasks import LabelledText, Task, divide

ROWS = [LabelledText(f"text {index}", index % 2) for index in range(8530)]


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


def test_reviews_are_the_rows_of_rotten_tomatoes_in_file_order(tmp_path):
    path = tmp_path / "reviews.csv"
    lines = [f"sentence {n},{n % 2},{'imdb' if n % 5 == 0 else 'rotten_tomatoes'}" for n in range(40)]
    path.write_text("text,label,source\n" + "\n".join(lines))
    task = reviews_task(path, 9, 7)
    rows = [LabelledText(f"sentence {n}", n % 2) for n in range(40) if n % 5]
    random.Random(0).shuffle(rows)
    assert (task.test, task.train) == (rows[:7], rows[-9:])
    assert task.answers == (" negative", " positive")


def test_a_task_of_one_class_is_refused():
    same = [LabelledText("a", 1)] * 3
    with pytest.raises(InputError, match="train rows of t are all of one class"):
        Task("t", "{text}", (" a", " b"), same, same, same)
