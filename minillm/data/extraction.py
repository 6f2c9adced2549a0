"""The answer in a generated text: strictly, right behind the cue, or flexibly, the last match anywhere.

lm-eval calls these filters strict-match and flexible-extract. The share of texts without a strict answer is reported
next to the accuracy: it tells wrong answers from answers that could not be parsed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NUMBER = r"-?\d(?:[\d,]*\d)?(?:\.\d+)?"


class Reading(NamedTuple):
    """The answers that were found in a text; None where there is none."""

    strict: str | None
    flexible: str | None


@dataclass(frozen=True)
class AnswerForm:
    """How an answer looks: a regular expression for it, and the words before it and behind it that make it strict.

    Without a cue a strict answer stands at the start of the text.
    """

    pattern: str
    cue: str
    end: str = ""

    @classmethod
    def of(cls, answers: Sequence[str], cue: str, end: str = "") -> "AnswerForm":
        """The form of one of these answers, of which the longest that fits is taken ("not funny" is not "funny").

        Where all are numbers, any number is an answer, right or wrong.
        """
        longest_first = sorted((answer.strip() for answer in answers), key=len, reverse=True)
        numbers = all(re.fullmatch(NUMBER, answer) for answer in longest_first)
        return cls(NUMBER if numbers else "|".join(map(re.escape, longest_first)), cue.strip(), end)

    def read(self, text: str) -> Reading:
        """The first answer behind the cue, and the last one anywhere, as they are written but for commas in numbers."""
        # Not within a longer word or number: 16 is no answer in 160, and 3 is none in 3.5.
        whole = rf"(?<![\w.])({self.pattern})(?!\w|[.,]\d)"
        before = rf"{re.escape(self.cue)}:?" if self.cue else r"\A"
        strict = re.search(rf"{before}\s*{whole}{re.escape(self.end)}", text, re.I)
        flexible = re.findall(whole, text, re.I)
        return Reading(_plain(strict[1]) if strict else None, _plain(flexible[-1]) if flexible else None)


def _plain(answer: str) -> str:
    return re.sub(r"(?<=\d),(?=\d)", "", answer)


def same_answer(found: str | None, expected: str) -> bool:
    """Whether two answers are equal, ignoring case and surrounding whitespace."""
    return found is not None and found.strip().lower() == expected.strip().lower()


def answer_shares(readings: Sequence[Reading], expected: Sequence[str]) -> dict[str, float]:
    """The shares of right answers, read strictly and flexibly, and of texts without a strict answer."""
    pairs = list(zip(readings, expected, strict=True))
    return {
        "strict": sum(same_answer(reading.strict, answer) for reading, answer in pairs) / len(pairs),
        "flexible": sum(same_answer(reading.flexible, answer) for reading, answer in pairs) / len(pairs),
        "unparsed": sum(reading.strict is None for reading in readings) / len(pairs),
    }


def majority(texts: Sequence[str], form: AnswerForm) -> str:
    """The first text with the answer that most texts give strictly (self-consistency, Wang et al. 2022).

    A text without a strict answer does not vote; of equals the first to be given wins.
    """
    read = [form.read(text).strict for text in texts]
    votes = Counter(answer.lower() for answer in read if answer is not None)
    if not votes:
        return texts[0]
    winner = votes.most_common(1)[0][0]
    return next(text for text, answer in zip(texts, read, strict=True) if answer and answer.lower() == winner)
