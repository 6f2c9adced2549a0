"""Free answers: what a model says after a prompt, in one stage or two, once or several times.

Two stages are Kojima et al.'s (2022): first the chain of thought, and behind it "Therefore, the answer is". Several
times is self-consistency (Wang et al. 2022): chains are sampled, and the answer that most of them come to is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from minillm.data.batches import length_buckets, pad_left
from minillm.data.extraction import AnswerForm, majority
from minillm.data.templates import BETWEEN, Question
from minillm.errors import InputError
from minillm.generation import LanguageModel, generate
from minillm.prompting.prompt_cache import Reader
from minillm.runtime.progress import progress
from minillm.tokenizer import Tokenizer

BATCH = 32
CONCLUDING = 16
"""The most tokens of a conclusion."""


@dataclass(frozen=True)
class Speech:
    """How long a model speaks, how freely (a temperature of 0: the likeliest), and at which texts it is cut off."""

    max_new_tokens: int = 96
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = (BETWEEN,)


def complete(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], speech: Speech, name: str = "answers"
) -> list[str]:
    """What follows each prompt, up to the first text to stop at, or the model's own end."""
    device = model.decoder.embed.weight.device
    words = [tokenizer.encode(text) for text in speech.stop]
    stop = {*tokenizer.stop, *(ids[0] for ids in words if len(ids) == 1)}
    found = [""] * len(prompts)
    batches = length_buckets([len(prompt) for prompt in prompts], BATCH)
    for number, batch in enumerate(progress(batches, desc=name, unit="batch")):
        ids, mask = pad_left([prompts[index] for index in batch])
        new = generate(
            model, ids.to(device), mask=mask.to(device), max_new_tokens=speech.max_new_tokens,
            temperature=speech.temperature, seed=speech.seed + number, stop=stop,
        )[:, ids.shape[1] :]  # fmt: skip
        for index, row in zip(batch, new.tolist(), strict=True):
            found[index] = _cut(tokenizer.decode(_until(row, tokenizer.stop)), speech.stop)
    return found


def _until(row: list[int], ends: Sequence[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.find(word) for word in stop if word in text), default=len(text))]


def spoken(
    reader: Reader, tokenizer: Tokenizer, questions: Sequence[Question], speech: Speech, name: str = "answers"
) -> list[str]:
    """What the model says to each question, from what its answer was begun with; all prompts' start is read once."""
    kept = reader.read([question.encode(tokenizer) for question in questions])
    said = complete(kept.model, tokenizer, kept.rests, speech, name)
    return [question.template.begun + question.said + text for question, text in zip(questions, said, strict=True)]


def concluded(
    reader: Reader, tokenizer: Tokenizer, questions: Sequence[Question], speech: Speech, name: str = "answers"
) -> list[str]:
    """`spoken`, and every chain that has not come to its conclusion is made to, in a second stage."""
    found = spoken(reader, tokenizer, questions, speech, name)
    open_ended = [n for n, q in enumerate(questions) if q.template.chain and q.template.conclusion not in found[n]]
    if open_ended:
        again = [questions[n]._replace(said=questions[n].template.conclude(found[n])) for n in open_ended]
        brief = replace(speech, max_new_tokens=CONCLUDING, stop=("\n",))
        for n, text in zip(open_ended, spoken(reader, tokenizer, again, brief, f"{name}: conclusions"), strict=True):
            found[n] = text
    return found


def self_consistent(answer: Callable[[Speech], list[str]], speech: Speech, samples: int, form: AnswerForm) -> list[str]:
    """For each question one of its sampled answers, one that says what most of them say.

    Raises InputError where the temperature is 0, at which all samples are the same.
    """
    if samples < 1 or speech.temperature == 0:
        raise InputError(f"{samples} samples at a temperature of {speech.temperature:g} are no vote: take more of both")
    # Batches take seeds one after another, and no two samples may have one in common.
    drawn = [answer(replace(speech, seed=speech.seed + 10_000 * sample)) for sample in range(samples)]
    return [majority(each, form) for each in zip(*drawn, strict=True)]
