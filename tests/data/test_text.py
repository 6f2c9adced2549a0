"""Text for language modelling: the held-out part is not in the training part."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data.reviews import reviews_task
from minillm.data.text import reviews_text, text_file


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), min_size=100, max_size=300))
def test_the_last_tenth_of_a_file_is_held_out_and_nothing_is_lost(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text(text, "utf-8", newline="")
    (train,), (held_out,) = text_file(path)
    assert train + held_out == text
    assert len(held_out) == pytest.approx(len(text) / 10, abs=1)


@pytest.fixture
def reviews(tmp_path):
    """1,250 sentences, of which 50 occur twice, and 20 long reviews."""
    order, path = random.Random(0), tmp_path / "reviews.csv"
    rows = [f"sentence {n % 1200},{n % 2},rotten_tomatoes" for n in range(1250)]
    rows += [f"long review {n},{n % 2},imdb" for n in range(20)]
    order.shuffle(rows)
    path.write_text("text,label,source\n" + "\n".join(rows))
    return path


def test_the_validation_and_test_rows_of_the_reviews_are_not_in_the_training_text(reviews):
    corpus, task = reviews_text(reviews), reviews_task(reviews, 200, 400)
    judged = {row.text for row in task.validation + task.test}
    assert judged <= set(corpus.held_out)
    assert not judged & set(corpus.train)
    assert {f"long review {n}" for n in range(20)} <= set(corpus.train)
    assert len(corpus.held_out) == 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.md", b"x" * 200, "must be a .txt file"),
        ("short.txt", b"short", "at least 100 characters, got 5"),
        ("latin.txt", b"\xff" * 200, "cannot be read as UTF-8"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_other_files_than_text_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        text_file(tmp_path / name)
