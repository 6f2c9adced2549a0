"""`minillm attention`: a picture of the attention weights of one head, with the columns of a prefix set apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minillm.classifier import TextClassifier
from minillm.errors import InputError, unknown
from minillm.hub.options import BaseOptions
from minillm.lab.pictures import FORMATS, WIDTH, draw, look
from minillm.play.command import Play
from minillm.play.page import Page, View
from minillm.runtime.files import check_directory
from minillm.runtime.options import Directory, File, Positional, RunOptions, Text
from minillm.runtime.reading import text_or_stdin

CELL, LONGEST = 0.25, 14
"""Inches per token, enough for a line of text; the characters of a token that are shown."""


@dataclass(kw_only=True)
class Attention(RunOptions, BaseOptions):
    """Draw the attention weights of one head: a row per token that attends, a column per token attended to.

    The columns of an adapter's prefix come first. An adapter's own prompt template is applied to the text.

    Example: minillm attention "A juggler can juggle 16 balls." --base tiny --layer 2 --head 1 --out a.svg
    """

    text: Positional[Text]
    r"""The text; \n is a newline, and - is standard input."""
    adapter: Directory | None = None
    """An adapter of this base."""
    layer: int = 0
    """The layer, counted from 0."""
    head: int = 0
    """The head, counted from 0."""
    out: File = Path("attention.svg")
    """The picture, a .svg, .png or .pdf file, which is replaced if it exists."""

    def __post_init__(self):
        super().__post_init__()
        if self.out.suffix[1:] not in FORMATS:
            raise unknown("suffix of --out", self.out.suffix, [f".{name}" for name in FORMATS])
        check_directory(self.out.parent)
        self.text = text_or_stdin(self.text) or ""
        if not self.text:
            raise InputError("the text is empty; give one whose tokens attend to each other")

    def run(self) -> None:
        adapter = () if self.adapter is None else (self.adapter,)
        same = {name: getattr(self, name) for name in ("base", "allow_nonfinite", "device", "threads")}
        page = Play(adapter=adapter, **same).page()
        usage = page.about["adapters"][0] if adapter else {"prompt": None, "chat": False}
        text, index = (usage["prompt"] or "{text}").replace("{text}", self.text), 0 if adapter else None
        view = View(text=text, chat=usage["chat"], adapter=index, layer=self.layer, head=self.head)
        model = f"{page.about['name']} with {usage['name']}" if adapter else page.about["name"]
        found = page.look(view) | {"title": f"{model}, layer {self.layer}, head {self.head}", "out": self.out}
        if not draw(attention_picture, found, self.out.with_suffix(""), (self.out.suffix[1:],)):
            raise InputError(f"{self.out} was not written")
        self.show(f"saved: {self.out}", found)


def prefix_attention(classifier: TextClassifier, text: str) -> dict[str, Any]:
    """What `attention_picture` shows of a trained prefix: the first head of the middle layer, on the prompt of a text.

    Raises InputError for too many tokens.
    """
    method: Any = classifier.method_
    layer = method.decoder.config.layers // 2
    page = Page("", method.decoder, classifier.tokenizer_, [("", method)])
    prompt = classifier.template_.render(text)
    found = page.look(View(text=prompt, adapter=0, layer=layer))
    shown = {name: found[name] for name in ("tokens", "prefix", "attention")}
    return shown | {"title": f"{classifier.method}, layer {layer}, head 0"}


def attention_picture(pyplot: Any, found: Mapping[str, Any]) -> Any:
    """The weights as shades of blue; a gap is between the columns of a prefix and those of the text."""
    prefix, tokens = found["prefix"], [repr(token)[1:-1].strip()[:LONGEST] or "␣" for token in found["tokens"]]
    weights, columns, title = np.array(found["attention"]) / 1000, tokens, "attended to"
    if prefix:
        title = f"p0 to p{prefix - 1}: the prefix, with {weights[:, :prefix].sum(1).mean():.1%} of the attention"
        weights, columns = np.insert(weights, prefix, np.nan, 1), [*(f"p{n}" for n in range(prefix)), "", *tokens]
    figure, axes = pyplot.subplots(figsize=(max(WIDTH, 2.7 + CELL * len(columns)), 2.3 + CELL * len(tokens)))
    image = axes.imshow(weights, cmap="Blues", vmin=min(0, np.nanmin(weights)), aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
    axes.set_yticks(range(len(tokens)), tokens, parse_math=False)
    for label in axes.get_xticklabels()[:prefix]:
        label.set_color(look("prefix").color)
    axes.tick_params(length=0)
    axes.set(xlabel=title, facecolor="0.8")
    figure.colorbar(image, label="attention weight")
    figure.suptitle(found["title"], parse_math=False)
    return figure
