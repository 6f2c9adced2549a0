"""The table of a ladder."""

import pytest

from minillm.lab import report
from minillm.lab.report import aligned, differences, in_bytes, standard_error, table

RUNG = {
    "name": "lora", "technique": "LoRA", "place": "3 weights", "accuracy": 0.83, "standard_error": 0.0188,
    "trainable_parameters": 460800, "stored_bytes": 1843200, "train_seconds": 31.04, "eval_seconds": 11.7,
    "calibration_error": 0.04, "runs": [{}], "tokens_per_second": 1005.4, "peak_memory_bytes": None,
}  # fmt: skip
RUNGS = [RUNG, {**RUNG, "name": "full"}]
LADDER = {"base": "b", "task": "reviews", "data": None, "train": 500, "test": 400, "rungs": RUNGS}


def test_the_table_contains_all_measurements_in_aligned_columns():
    lines = table(LADDER).splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    for cell in ("LoRA", "3 weights", "460,800", "1.8 MB", "0.830 ± 0.019", "31.0 s", "11.7 s", "1,005", "-"):
        assert cell in lines[2].split("  ") or cell in [part.strip() for part in lines[2].split("  ")]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (4616, "4.6 kB"), (1843200, "1.8 MB"), (538060032, "0.50 GiB"), (2**31, "2.00 GiB")]
)
def test_bytes_have_a_suitable_unit(count, text):
    assert in_bytes(count) == text


def test_the_standard_error_of_79_percent_of_400_is_2_points():
    assert standard_error(0.79, 400) == pytest.approx(0.02036, abs=1e-5)


@pytest.mark.parametrize("width", [80, 50, 30])
def test_a_table_fits_the_terminal_and_names_the_columns_that_it_leaves_out(width, monkeypatch):
    monkeypatch.setattr(report, "terminal_width", lambda: width)
    long = {**RUNG, "technique": "output layer, rows of the answers", "place": "4 on top"}
    *lines, left_out = table({**LADDER, "rungs": [long, RUNG]}).splitlines()
    assert max(map(len, lines)) <= width
    assert all("0.830 ± 0.019" in line for line in lines[2:])
    assert left_out.startswith("no room for: peak, tokens/s, ECE, adapter, place in figure 1")
    assert ("train" in lines[0].split()) == (width == 80)
    assert ("…" in lines[2]) == (width == 30)


def test_a_table_in_a_file_has_all_columns_and_equal_titles_do_not_collide():
    assert "peak" in table(LADDER)
    assert aligned([("a", "a"), ("1", "2")]) == "a  a\n----\n1  2"


def test_the_text_says_which_differences_are_larger_than_noise(monkeypatch):
    """Of many pairs it shows those with the best rung, and on a narrow terminal their number."""
    pair = {"first": "lora", "second": "features", "difference": 0.004, "low": -0.008, "high": 0.016, "holm_p": 0.64}
    pairs = [pair | {"verdict": "not distinguishable"}, pair | {"second": "full", "verdict": "larger than noise"}]
    lines = "\n".join(differences(pairs)).splitlines()
    assert lines[2].split("  ")[0] == "lora - features"
    assert [cell.strip() for cell in lines[2].split("  ") if cell][1:] == [
        "+0.4", "-0.8 to +1.6", "0.64", "not distinguishable",
    ]  # fmt: skip
    assert lines[-1] == "1 of 2 differences are larger than noise"
    many = pairs + [pair | {"first": "few-shot", "verdict": "larger than noise"}] * 9
    assert "few-shot" not in "".join(differences(many))
    monkeypatch.setattr(report, "terminal_width", lambda: 79)
    assert differences(many) == ["10 of 11 differences are larger than noise", ""]
    assert differences([]) == []
