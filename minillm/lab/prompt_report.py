"""Texts and tables of `minillm prompt`: the prompt, its tokens, label probabilities and accuracies."""

from collections.abc import Sequence
from typing import Any

import torch

from minillm.data.answers import encode_answers
from minillm.data.boundary import spelled
from minillm.data.templates import Question
from minillm.lab.asking import Answers
from minillm.lab.experiment import Experiment
from minillm.lab.report import aligned
from minillm.operations import softmax
from minillm.prompting.measures import MEASURES
from minillm.prompting.scoring import answer_scores


def prompt_text(experiment: Experiment, question: Question) -> str:
    """The rendered prompt, with the text generated so far, between two rules."""
    template = question.template
    tokenizer = experiment.tokenizer if template.chat else None
    text = template.preview(question.text, tokenizer) + question.generated
    title = f" {template.name}{', as a chat' if template.chat else ''} "
    return f"{title:-^72}\n{text}\n{'-' * 72}"


def prompt_tokens(experiment: Experiment, question: Question, answers: Sequence[str]) -> str:
    """The tokens of the prompt and of each answer, also for a prompt with a trailing space."""
    tokenizer = experiment.tokenizer
    ids = question.encode(tokenizer)
    lines = [f"{len(ids)} tokens: {spelled(tokenizer, ids)}"]
    encoded = question.template.answers(tokenizer, [question.text], answers)
    lines += _answers(experiment, "this prompt", ids, encoded)
    if all(answer.startswith(" ") for answer in map(tokenizer.decode, encoded)):
        with_space = question._replace(generated=question.generated + " ").encode(tokenizer)
        without = encode_answers(tokenizer, [answer.lstrip() for answer in answers], question.template.after_answer)
        lines += _answers(
            experiment, "the prompt with a trailing space, the answers without their leading space", with_space, without
        )
    return "\n".join(lines)


@torch.no_grad()
def _answers(experiment: Experiment, what: str, prompt: list[int], answers: list[list[int]]) -> list[str]:
    scores = answer_scores(experiment.decoder, [prompt], answers)[0].tolist()
    end = spelled(experiment.tokenizer, prompt[-2:])
    lines = [f"{what}:"]
    for answer, score in zip(answers, scores, strict=True):
        lines.append(f"  ...{end} {spelled(experiment.tokenizer, answer)}: log P = {score:.3f}")
    return lines


def probabilities(answers: Answers) -> str:
    """The probability of each label, among all labels, for the first text, before and after calibration."""
    before, after = softmax(answers.labels.scores[0]), answers.labels.after()["acc"][0].exp()
    figures = zip(answers.labels.answers, before.tolist(), after.tolist(), strict=True)
    rows = [(answer.strip(), f"{one:.3f}", f"{two:.3f}") for answer, one, two in figures]
    return aligned([("label", "probability", "calibrated"), *rows])


def accuracy_table(found: dict[str, Any]) -> str:
    """The measures, before and after calibration, and the free answers, if any."""
    rows = [("measure", "accuracy", "calibrated")]
    for name, one in found["measures"].items():
        before, after = (f"{one[w]['accuracy']:.3f} ± {one[w]['standard_error']:.3f}" for w in ("before", "after"))
        rows.append((name, before, after))
    lines = [aligned(rows), *(f"{name}: {MEASURES[name]}" for name in found["measures"])]
    lines.append("calibrated: divided by the probabilities for a text without content")
    for name, title in (("free", "free answers"), ("self_consistency", "majority vote")):
        if name in found:
            one = found[name]
            lines.append(
                f"{title}: accuracy with strict extraction {one['strict']:.3f} ± {one['standard_error']:.3f}, flexible "
                f"{one['flexible']:.3f}; {one['unparsed']:.1%} of the answers could not be parsed"
            )
    return "\n".join(lines)


def order_table(found: Sequence[dict[str, Any]], spread: dict[str, Any]) -> str:
    """The accuracy for each order of the examples, with mean and standard deviation, by measure."""
    rows = [("measure", *(f"order {n}" for n in range(1, len(found) + 1)), "mean ± sd")]
    for name in spread:
        for when, title in (("before", name), ("after", f"{name}, calibrated")):
            each = [f"{one['measures'][name][when]['accuracy']:.3f}" for one in found]
            figure = spread[name][when]
            rows.append((title, *each, f"{figure['mean']:.3f} ± {figure['standard_deviation']:.3f}"))
    return aligned(rows, least=rows[0][-2:0:-1])
