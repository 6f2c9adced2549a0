"""The table and the plot of a ladder."""

import pytest

from minillm.lab.report import draw, in_bytes, picture, standard_error, table

RUNG = {
    "name": "lora", "technique": "LoRA", "place": "3 weights", "accuracy": 0.83, "standard_error": 0.0188,
    "trainable_parameters": 460800, "stored_bytes": 1843200, "train_seconds": 31.04, "eval_seconds": 11.7,
    "tokens_per_second": 1005.4, "peak_memory_bytes": None,
}  # fmt: skip
RUNGS = [RUNG, {**RUNG, "name": "full"}]
LADDER = {"base": "b", "task": "reviews", "data": None, "train": 500, "test": 400, "rungs": RUNGS}


def test_the_table_contains_all_measurements_in_aligned_columns():
    lines = table(LADDER).splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    for cell in ("LoRA", "3 weights", "460,800", "1.8 MB", "0.830 ± 0.019", "31.0 s", "11.7 s", "1,005", "-"):
        assert cell in lines[2].split("  ") or cell in [part.strip() for part in lines[2].split("  ")]


def test_the_picture_is_a_png(tmp_path):
    assert draw(picture, LADDER, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (4616, "4.6 kB"), (1843200, "1.8 MB"), (538060032, "0.50 GiB"), (2**31, "2.00 GiB")]
)
def test_bytes_have_a_suitable_unit(count, text):
    assert in_bytes(count) == text


def test_the_standard_error_of_79_percent_of_400_is_2_points():
    assert standard_error(0.79, 400) == pytest.approx(0.02036, abs=1e-5)
