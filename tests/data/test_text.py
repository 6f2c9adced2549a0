"""Text for language modelling is divided so that what is measured on was not trained on."""

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
    """A thousand and some sentences, a few of them twice, and a few long reviews."""
    order, path = random.Random(0), tmp_path / "reviews.csv"
    rows = [f"sentence {n % 1200},{n % 2},rotten_tomatoes" for n in range(1250)]
    rows += [f"long review {n},{n % 2},imdb" for n in range(20)]
    order.shuffle(rows)
    path.write_text("text,label,source\n" + "\n".join(rows))
    return path


def test_what_the_task_reviews_validates_and_tests_on_is_not_in_the_text(reviews):
    corpus, task = reviews_text(reviews), reviews_task(reviews, 200, 400)
    judged = {row.text for row in task.validation + task.test}
    assert judged == set(corpus.held_out)
    assert not judged & set(corpus.train)
    assert {f"long review {n}" for n in range(20)} <= set(corpus.train)
    assert len(corpus.held_out) == 1000


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("mine.md", b"x" * 200, "is no .txt file"),
        ("short.txt", b"short", "has 5 characters"),
        ("latin.txt", b"\xff" * 200, "is not UTF-8"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        text_file(tmp_path / name)
