"""Pictures of measurements: their files, the looks of the methods, and labels that do not overlap."""

from itertools import combinations

import matplotlib
import matplotlib.text
import pytest
from matplotlib import pyplot

from minillm.errors import InputError
from minillm.lab.ladder import RUNGS, Ladder
from minillm.lab.pictures import METHOD_LOOK, STYLE, draw, ladder_picture, look


def _ladder(accuracies):
    parameters = (0, 0, 5760, 115200, 1154, 28311552, 7080768, 460800, 134515008)
    measured = {"standard_error": 0.02, "majority_baseline": 0.5, "train_seconds": 208.0, "eval_seconds": 43.0}
    rungs = [
        {"name": name, "accuracy": accuracy, "trainable_parameters": count, **measured}
        for name, accuracy, count in zip(RUNGS, accuracies, parameters, strict=True)
    ]
    return {"base": "smollm2-135m-instruct", "task": "reviews", "data": None, "train": 500, "test": 400, "rungs": rungs}


EQUAL = _ladder([0.79] * 9)
SPREAD = _ladder([0.79, 0.533, 0.85, 0.5, 0.833, 0.848, 0.84, 0.85, 1.0])


def _small(pyplot, measured):
    figure = pyplot.figure(figsize=(1, 1))
    figure.text(0.1, 0.5, "a")
    return figure


def test_a_picture_is_written_in_each_format_and_twice_with_the_same_bytes(tmp_path):
    first, second = (draw(_small, {}, tmp_path / name, ("svg", "png", "pdf")) for name in ("a", "b"))
    assert [path.name for path in first] == ["a.svg", "a.png", "a.pdf"]
    for one, other, start in zip(first, second, (b"<?xml", b"\x89PNG", b"%PDF"), strict=True):
        assert one.read_bytes().startswith(start)
        assert one.read_bytes() == other.read_bytes()


def test_a_directory_that_cannot_be_written_costs_the_picture_only(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert draw(_small, {}, tmp_path / "file" / "a") == []
    assert "no picture" in capsys.readouterr().err


def _boxes(figure):
    """The bounding boxes of all texts, and the figure's own."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
    return {text.get_text() + str(at): text.get_window_extent() for at, text in enumerate(texts)}, figure.bbox


@pytest.mark.parametrize("ladder", [EQUAL, SPREAD])
def test_no_label_overlaps_another_one_or_leaves_the_picture(ladder):
    with matplotlib.rc_context(STYLE):
        figure = ladder_picture(pyplot, ladder)
        boxes, whole = _boxes(figure)
        pyplot.close(figure)
    assert len(boxes) > 30
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    for box in boxes.values():
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_each_method_has_a_colour_and_a_marker_of_its_own():
    assert set(RUNGS) <= METHOD_LOOK.keys()
    for part in zip(*METHOD_LOOK.values(), look("something else"), strict=False):
        assert len(set(part)) == len(part)
    assert look("something else") not in METHOD_LOOK.values()


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="jpg"):
        Ladder(format=("jpg",))
