"""A prompt to look at: its text, its tokens, what each label gets, and the tables of accuracies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.data.boundary import spelled
from minillm.data.templates import Question
from minillm.lab.asking import Asked
from minillm.lab.world import Bench
from minillm.operations import softmax
from minillm.prompting.measures import MEASURES
from minillm.prompting.scoring import answer_scores


def shown_prompt(bench: Bench, question: Question) -> str:
    """The rendered prompt, with what the model has said already, between two lines."""
    template = question.template
    tokenizer = bench.tokenizer if template.chat else None
    text = template.preview(question.text, tokenizer) + question.said
    title = f" {template.name}{', as a chat' if template.chat else ''} "
    return f"{title:-^72}\n{text}\n{'-' * 72}"


def shown_tokens(bench: Bench, question: Question, answers: Sequence[str]) -> str:
    """The prompt's tokens and each answer's, and how another question is asked if the prompt ends with a blank."""
    ids = question.encode(bench.tokenizer)
    lines = [f"{len(ids)} tokens: {spelled(bench.tokenizer, ids)}"]
    encoded = question.template.answers(bench.tokenizer, [question.text], answers)
    lines += _answers(bench, "as it is asked", ids, encoded)
    if all(answer.startswith(" ") for answer in map(bench.tokenizer.decode, encoded)):
        blank = question._replace(said=question.said + " ").encode(bench.tokenizer)
        parted = [bench.tokenizer.encode(answer.lstrip()) for answer in answers]
        lines += _answers(bench, "the same letters, were the blank the prompt's", blank, parted)
    return "\n".join(lines)


@torch.no_grad()
def _answers(bench: Bench, what: str, prompt: list[int], answers: list[list[int]]) -> list[str]:
    scores = answer_scores(bench.decoder, [prompt], answers)[0].tolist()
    end = spelled(bench.tokenizer, prompt[-2:])
    lines = [f"{what}:"]
    for answer, score in zip(answers, scores, strict=True):
        lines.append(f"  ...{end} {spelled(bench.tokenizer, answer)}: log P = {score:.3f}")
    return lines


def probabilities(asked: Asked, row: int = 0) -> str:
    """Each label's share of the labels' probability for a text, before and after calibration."""
    before, after = softmax(asked.preferences.scores[row]), asked.preferences.after()["acc"][row].exp()
    return aligned([("label", "probability", "calibrated"), *_label_rows(asked.preferences.answers, before, after)])


def _label_rows(answers: Sequence[str], before: Tensor, after: Tensor) -> list[tuple[str, ...]]:
    pairs = zip(answers, before.tolist(), after.tolist(), strict=True)
    return [(answer.strip(), f"{one:.3f}", f"{two:.3f}") for answer, one, two in pairs]


def accuracies(found: dict[str, Any]) -> str:
    """The four measures, before and after calibration, and the free answers if there are any."""
    rows = [("measure", "accuracy", "calibrated")]
    rows += [(name, _share(one["before"]), _share(one["after"])) for name, one in found["measures"].items()]
    lines = [aligned(rows), *(f"{name}: {meaning}" for name, meaning in MEASURES.items())]
    for name, title in (("free", "free answers"), ("self_consistency", "the majority's")):
        if name in found:
            one = found[name]
            lines.append(
                f"{title}: strictly read {one['strict']:.3f} ± {one['standard_error']:.3f} right, flexibly "
                f"{one['flexible']:.3f}; {one['unparsed']:.3f} could not be parsed"
            )
    return "\n".join(lines)


def _share(figure: dict[str, float]) -> str:
    return f"{figure['accuracy']:.3f} ± {figure['standard_error']:.3f}"


def by_order(found: Sequence[dict[str, Any]], over: dict[str, Any]) -> str:
    """The accuracy of each order of the examples, and their mean and standard deviation, by measure."""
    rows = [("measure", *(f"order {n}" for n in range(1, len(found) + 1)), "mean ± sd")]
    for name in over:
        for when, title in (("before", name), ("after", f"{name}, calibrated")):
            each = [f"{one['measures'][name][when]['accuracy']:.3f}" for one in found]
            figure = over[name][when]
            rows.append((title, *each, f"{figure['mean']:.3f} ± {figure['standard_deviation']:.3f}"))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *figures]))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
