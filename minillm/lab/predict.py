"""`minillm predict`: classify texts with a saved classifier. Rows flow in chunks, so memory does not grow with them.

A file is checked before anything is written. Standard input is a stream: its rows are checked as they come.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import TextIOBase
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from minillm.classifier import TextClassifier
from minillm.data.encodings import STDIN
from minillm.data.tables import Format, Row, Table
from minillm.data.tasks import LabelledText
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.lab.adapt import MEASURED
from minillm.lab.evaluation import evaluated, shown
from minillm.operations import softmax
from minillm.prompting.lengths import Truncate
from minillm.prompting.prompt_cache import PromptCache
from minillm.runtime.device import keep_freed_memory, use_threads
from minillm.runtime.files import check_unused, replacing
from minillm.runtime.options import File, Model, Positional, RunOptions
from minillm.runtime.progress import note, progress
from minillm.runtime.reading import read_json, reading

CHUNK = 256
"""Rows that are sorted by length and scored together."""


@dataclass(kw_only=True)
class Predict(RunOptions):
    """Classify texts with a directory of `minillm adapt` or `TextClassifier.save`.

    Each line of standard input gives a line: the label, a tab, its probability. The rows of a table are written in its
    format (.json and --json: JSON lines), with the columns label and probability added.

    Example: minillm predict my.adapter reviews.csv --out predicted.csv
    """

    directory: Positional[Path]
    """The directory of the classifier."""
    file: Positional[Path] = Path("-")
    """A .csv, .tsv, .jsonl or .json file, or a .txt file with a text in each line; - or nothing: standard input."""
    format: Format | None = None
    """The format, if not that of the file's name; standard input has lines, a text in each, if not given."""
    delimiter: str | None = None
    r"""The delimiter of a table, for example ; or \t (recognised if not given)."""
    encoding: str | None = None
    """The encoding, for example utf-16 or cp1252 (recognised if not given; UTF-8 for standard input)."""
    text_column: str | None = None
    """The column of the texts; if not given, that of the data of `minillm adapt`, else text."""
    base: Model | None = None
    """Another place of the classifier's base."""
    truncate: Truncate | None = None
    """A text that is too long for the context: error, or cut its left or right end; as in training if not given."""
    probabilities: bool = False
    """Also write the probability of each label, in the order that is printed."""
    evaluate: str | None = None
    """The column of the correct labels: print accuracy, precision, recall, F1 and the confusion matrix."""
    out: File | None = None
    """The file to write, as a whole or not at all; if not given, standard output, or none with --evaluate."""
    overwrite: bool = False
    """Replace an existing file."""

    def __post_init__(self):
        super().__post_init__()
        if self.out is not None:
            check_unused(self.out, self.overwrite)
            if self.out.is_dir():
                raise InputError(f"{self.out} is a directory; --out must be a file")

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        table, total, size = self._table(), None, CHUNK
        names = [self._text_column(table.kind), *([] if self.evaluate is None else [self.evaluate])]
        rows, delimiter, _ = table.scan(*names)
        first = next(rows)
        for name in names:  # before the base is loaded
            first.text(name)
        classifier = TextClassifier.load(self.directory, base=self.base, device=self.device)
        # The features of these texts are not stored.
        classifier.store, classifier.truncate = None, self.truncate or classifier.truncate
        columns = Columns(names, classifier, first.values, self.probabilities)
        rows = chain([first], rows)
        if table.path != STDIN:
            total = classifier.check_rows(map(columns.labelled, rows))
            rows, *_ = table.scan(*names)
        elif sys.stdin.isatty():
            size = 1
        if (columns.added[0] != "label" or self.probabilities) and (self.evaluate is None or self.out is not None):
            note(f"the columns of the predictions: {', '.join(columns.added)}")
        with ExitStack() as stack:
            stream = sys.stdout
            if self.out is not None or self.evaluate is not None:
                path = Path(os.devnull) if self.out is None else stack.enter_context(replacing(self.out))
                stream = stack.enter_context(path.open("w", -1, "utf-8", "backslashreplace", ""))
            write = columns.writer(stream, "jsonl" if self.json else table.kind, delimiter)
            found = columns.predictions(rows, size)
            # A bar would be drawn between the rows on a terminal.
            for row in found if stream.isatty() else progress(found, total=total, desc="texts", unit="row"):
                write(row)
                stream.flush()
        if self.evaluate is not None:
            measured = evaluated(columns.counts, columns.classes)
            self.show(shown(measured), measured)
        if self.out is not None:
            note(f"saved: {self.out}")

    def _table(self) -> Table:
        path = STDIN if str(self.file) == "-" else self.file
        lines = path == STDIN or path.suffix.lower() == ".txt"
        return Table(path, self.delimiter, self.encoding, self.format or ("lines" if lines else None))

    def _text_column(self, kind: str) -> str:
        if self.text_column is not None or kind == "lines" or not (path := self.directory / MEASURED).is_file():
            return self.text_column or "text"
        with reading(path):
            return read_json(path)["ladder"]["text_column"]


class Columns:
    """The columns of the texts and, to evaluate, of the correct labels, and those that are added to a table.

    `counts` is the confusion matrix: its rows are the labels, its columns the predictions.
    """

    def __init__(self, names: Sequence[str], classifier: TextClassifier, first: dict[str, Any], every: bool):
        self.text, self.label, self.classifier, self.first = names[0], names[1:], classifier, first
        classes = classifier.classes_.tolist()
        self.classes = [label if isinstance(label, str) else json.dumps(label) for label in classes]
        self.counts = [[0] * len(classes) for _ in classes]
        self.added = ["label", "probability", *(f"probability_{name}" for name in self.classes if every)]
        if any(name in first for name in self.added):
            self.added = [f"predicted_{name}" for name in self.added]

    def labelled(self, row: Row) -> LabelledText:
        """The text and the number of its label. Raises InputError for a label that is no class, and an added column."""
        label = row.text(*self.label).strip() if self.label else self.classes[0]
        if label not in self.classes:
            raise row.wrong(f"the label {label!r} is not a class; there are: {', '.join(self.classes)}"[:500])
        if odd := [name for name in self.added if name in row.values]:
            raise row.wrong(f"the column {odd[0]!r} would be overwritten; rename it")
        return LabelledText(row.text(self.text), self.classes.index(label), place=row.place)

    def predictions(self, rows: Iterator[Row], size: int) -> Iterator[dict[str, Any]]:
        """Rows with their label and probabilities."""
        template, cache = self.classifier.template_, PromptCache(self.classifier.method_.decoder)
        if isinstance(self.classifier.method_, Decoder):  # the common start of all prompts is processed once
            cache.process([template.encode(self.classifier.tokenizer_, text) for text in ("", "a")])
        while chunk := list(islice(rows, size)):
            texts = list(map(self.labelled, chunk))
            scores = self.classifier.score_rows(texts, cache=cache).scores
            for row, text, shares in zip(chunk, texts, softmax(scores.double()).tolist(), strict=True):
                best = shares.index(max(shares))
                self.counts[text.label][best] += 1
                numbers = [round(share, 6) for share in (shares[best], *shares)]
                yield row.values | dict(zip(self.added, [self.classes[best], *numbers], strict=False))

    def writer(self, stream: TextIO | TextIOBase, kind: str, delimiter: str) -> Callable[[dict[str, Any]], Any]:
        """A function that writes a row in a format; as a plain line, the added columns alone."""
        if kind in ("jsonl", "json"):
            return lambda row: print(json.dumps(row, ensure_ascii=False), file=stream)
        kept = [] if kind == "lines" else list(self.first)
        table = csv.DictWriter(
            stream, [*kept, *self.added], extrasaction="ignore", delimiter=delimiter or "\t", lineterminator="\n"
        )
        if kept:
            table.writeheader()
        return table.writerow
