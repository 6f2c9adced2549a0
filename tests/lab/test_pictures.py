"""Pictures of measurements: their files, the looks of the methods, and labels that do not overlap."""

import json
from itertools import combinations

import matplotlib
import matplotlib.text
import numpy as np
import pytest
from matplotlib import pyplot

import minillm
from minillm import adapt
from minillm.errors import InputError
from minillm.lab.attention import Attention, attention_picture
from minillm.lab.juggler import STRATEGIES, juggler_picture
from minillm.lab.ladder import RUNGS, Ladder
from minillm.lab.pictures import METHOD_LOOK, STYLE, draw, ladder_picture, look
from minillm.runtime.options import parse


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
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = [(tick, sorted(axis.get_view_interval())) for axis in axes for tick in axis.get_major_ticks()]
    not_drawn = [tick for tick, (low, high) in ticks if not low <= tick.get_loc() <= high]
    outside = [label for tick in not_drawn for label in (tick.label1, tick.label2)]
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
    shown = [text for text in texts if text not in outside]
    return {f"{text.get_text()} {at}": text.get_window_extent() for at, text in enumerate(shown)}, figure.bbox


def _attention(prefix):
    tokens = ["\n", " ", "$5", "$6", " is", " internationalisation", " half", " of", " 12"]
    weights = np.tri(len(tokens), prefix + len(tokens), prefix)
    shares = 1000 * weights / weights.sum(1, keepdims=True)
    return {"tokens": tokens, "prefix": prefix, "attention": shares.tolist(), "title": "tiny, layer 0, head 3"}


def _juggler():
    way = {"strict": 0.9, "standard_error": 0.02}
    ways = [{"way": strategy.name, "steps": steps, **way} for steps in (2, 3, 4) for strategy in STRATEGIES]
    return {"ways": ways, "chain_less_direct": [{"steps": steps, "guess": 0.1} for steps in (2, 3, 4)]}


@pytest.mark.parametrize(
    ("picture", "measured"),
    [
        (ladder_picture, EQUAL), (ladder_picture, SPREAD), (attention_picture, _attention(0)),
        (attention_picture, _attention(10)), (juggler_picture, _juggler()),
    ],
)  # fmt: skip
def test_no_label_overlaps_another_one_or_leaves_the_picture(picture, measured):
    with matplotlib.rc_context(STYLE):
        figure = picture(pyplot, measured)
        boxes, whole = _boxes(figure)
        pyplot.close(figure)
    assert len(boxes) > 15
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    for box in boxes.values():
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_the_columns_of_a_prefix_are_named_and_set_apart():
    with matplotlib.rc_context(STYLE):
        figure = attention_picture(pyplot, _attention(3))
        axes = figure.axes[0]
        names = [label.get_text() for label in axes.get_xticklabels()]
        shown = axes.images[0].get_array()
        pyplot.close(figure)
    assert names[:6] == ["p0", "p1", "p2", "", r"\n", "␣"]
    assert shown.mask[:, 3].all()
    assert not shown.mask[:, :3].any()
    np.testing.assert_allclose(shown.filled(0).sum(1), 1)


def _drawn(place, *words):
    """The output of `minillm attention`, with the base tiny."""
    command = parse(Attention, "minillm attention", ["--base", "tiny", "--out", str(place / "a.svg"), "--json", *words])
    command.run()


def test_the_attention_of_tiny_is_drawn_with_the_prefix_of_an_adapter(tmp_path, capsys):
    decoder, tokenizer = minillm.load("tiny")
    prefix = adapt.PrefixTuning(decoder, 4)
    prefix.save(tmp_path / "prefix", tokenizer=tokenizer)
    _drawn(tmp_path, "A juggler can juggle 16 balls.", "--adapter", str(tmp_path / "prefix"), "--layer", "3")
    found = json.loads(capsys.readouterr().out)
    assert found["prefix"] == 4
    assert len(found["attention"]) == len(found["tokens"]) == len(found["attention"][0]) - 4
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("a", "--layer", "4"), "there is no layer 4: there are 4, counted from 0"),
        (("a", "--head", "-1"), "there is no head -1: there are 4, counted from 0"),
        (("",), "the text is empty"),
        (("a " * 300,), "256 tokens, got"),
        (("a", "--out", "a.jpg"), "unknown suffix of --out: '.jpg'"),
    ],
)
def test_a_picture_of_attention_that_cannot_be_drawn_is_one_sentence(tmp_path, words, problem):
    with pytest.raises(InputError, match=problem):
        _drawn(tmp_path, *words)
    assert not list(tmp_path.iterdir())


def test_each_method_has_a_colour_and_a_marker_of_its_own():
    assert set(RUNGS) <= METHOD_LOOK.keys()
    for part in zip(*METHOD_LOOK.values(), look("something else"), strict=False):
        assert len(set(part)) == len(part)
    assert look("something else") not in METHOD_LOOK.values()


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="jpg"):
        Ladder(format=("jpg",))
