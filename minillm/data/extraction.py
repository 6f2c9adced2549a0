"""Answer extraction from generated text: strict (right after the cue) or flexible (the last match anywhere).

lm-eval calls these filters strict-match and flexible-extract. The share of texts without a strict answer is reported
next to the accuracy, to distinguish wrong answers from answers that could not be parsed.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NUMBER = r"-?\d(?:[\d,]*\d)?(?:\.\d+)?"


class Reading(NamedTuple):
    """The answers found in a text, or None."""

    strict: str | None
    flexible: str | None


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer: a regular expression, and the words before and after it that a strict answer needs.

    Without a cue, a strict answer is at the start of the text. With `alone`, no word follows it in its line.
    """

    pattern: str
    cue: str
    end: str = ""
    alone: bool = False

    @classmethod
    def of(cls, answers: Sequence[str], cue: str, end: str = "") -> "AnswerForm":
        """The form that matches these answers, the longest first ("not funny" before "funny").

        If all of them are numbers, it matches any number. If one of them begins another ("not", "not sure"), a strict
        answer must stand alone: "not surely" is neither.
        """
        longest_first = sorted((" ".join(answer.split()) for answer in answers), key=len, reverse=True)
        numbers = all(re.fullmatch(NUMBER, answer) for answer in longest_first)
        pattern = "|".join(r"[ \t]+".join(map(re.escape, answer.split())) for answer in longest_first)
        alone = any(
            one != other and other.lower().startswith(one.lower()) for one in longest_first for other in longest_first
        )
        return cls(NUMBER if numbers else pattern, cue.strip(), end, alone and not numbers)

    def read(self, text: str) -> Reading:
        """The first answer after the cue and the last one anywhere, without the commas in numbers."""
        # No match within a longer word or number: not 16 in 160, not 3 in 3.5.
        whole = rf"(?<![\w.])({self.pattern})(?!\w|[.,]\d)"
        before = rf"{re.escape(self.cue)}:?" if self.cue else r"\A"
        after = re.escape(self.end) + (r"(?![ \t-]*\w)" if self.alone else "")
        strict = re.search(rf"{before}\s*{whole}{after}", text, re.I)
        flexible = re.findall(whole, text, re.I)
        return Reading(_plain(strict[1]) if strict else None, _plain(flexible[-1]) if flexible else None)


def _plain(answer: str) -> str:
    return " ".join(re.sub(r"(?<=\d),(?=\d)", "", answer).split())


def same_answer(found: str | None, expected: str) -> bool:
    """Whether two answers are equal, ignoring case and the amount of whitespace."""
    return found is not None and found.lower().split() == expected.lower().split()


def answer_shares(readings: Sequence[Reading], expected: Sequence[str]) -> dict[str, float]:
    """The accuracy of strict and of flexible extraction, and the share of texts without a strict answer."""
    pairs = list(zip(readings, expected, strict=True))
    return {
        "strict": sum(same_answer(reading.strict, answer) for reading, answer in pairs) / len(pairs),
        "flexible": sum(same_answer(reading.flexible, answer) for reading, answer in pairs) / len(pairs),
        "unparsed": sum(reading.strict is None for reading in readings) / len(pairs),
    }


def majority(texts: Sequence[str], form: AnswerForm) -> str:
    """The first text with the most frequent strict answer (self-consistency, Wang et al. 2022).

    Texts without a strict answer do not vote; a tie goes to the answer that occurs first.
    """
    read = [form.read(text).strict for text in texts]
    votes = Counter(answer.lower() for answer in read if answer is not None)
    if not votes:
        return texts[0]
    winner = votes.most_common(1)[0][0]
    return next(text for text, answer in zip(texts, read, strict=True) if answer and answer.lower() == winner)
