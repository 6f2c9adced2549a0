"""Generated answers, in one stage or two, once or several times.

Two stages (Kojima et al. 2022): first the chain of thought, then, after "Therefore, the answer is", the answer. Several
times (self-consistency, Wang et al. 2022): chains are sampled, and the most frequent answer is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from minillm.data.batches import length_buckets, pad_left
from minillm.data.extraction import AnswerForm, majority
from minillm.data.templates import BETWEEN, Question
from minillm.errors import InputError
from minillm.generation import LanguageModel, generate
from minillm.prompting.prompt_cache import PromptCache
from minillm.runtime.progress import progress
from minillm.tokenizer import Tokenizer

BATCH = 32
CONCLUSION_TOKENS = 16  # at most


@dataclass(frozen=True)
class GenerationSettings:
    """The maximum length, the temperature (0: greedy), the seed, and the texts at which an answer ends."""

    max_new_tokens: int = 96
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = (BETWEEN,)


def complete(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], settings: GenerationSettings,
    name: str = "answers",
) -> list[str]:  # fmt: skip
    """The text generated after each prompt, up to the first stop text or stop token."""
    device = model.decoder.embed.weight.device
    texts = [tokenizer.encode(text) for text in settings.stop]
    stop = {*tokenizer.stop, *(ids[0] for ids in texts if len(ids) == 1)}
    found = [""] * len(prompts)
    batches = length_buckets([len(prompt) for prompt in prompts], BATCH)
    for number, batch in enumerate(progress(batches, desc=name, unit="batch")):
        ids, mask = pad_left([prompts[index] for index in batch])
        new = generate(
            model, ids.to(device), mask=mask.to(device), max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature, seed=settings.seed + number, stop=stop,
        )[:, ids.shape[1] :]  # fmt: skip
        for index, row in zip(batch, new.tolist(), strict=True):
            tokens = list(takewhile(lambda token: token not in tokenizer.stop, row))
            found[index] = _cut(tokenizer.decode(tokens), settings.stop)
    return found


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.find(word) for word in stop if word in text), default=len(text))]


def generated_answers(
    cache: PromptCache, tokenizer: Tokenizer, questions: Sequence[Question], settings: GenerationSettings,
    name: str = "answers",
) -> list[str]:  # fmt: skip
    """The answer to each question, including its given start; the shared prefix of the prompts is processed once."""
    cached = cache.process([question.encode(tokenizer) for question in questions])
    texts = complete(cached.model, tokenizer, cached.rests, settings, name)
    return [q.template.answer_start + q.generated + text for q, text in zip(questions, texts, strict=True)]


def concluded_answers(
    cache: PromptCache, tokenizer: Tokenizer, questions: Sequence[Question], settings: GenerationSettings,
    name: str = "answers",
) -> list[str]:  # fmt: skip
    """`generated_answers`; chains of thought without a conclusion get one in a second stage."""
    found = generated_answers(cache, tokenizer, questions, settings, name)
    open_ended = [n for n, q in enumerate(questions) if q.template.chain and q.template.conclusion not in found[n]]
    if open_ended:
        again = [questions[n]._replace(generated=questions[n].template.conclude(found[n])) for n in open_ended]
        brief = replace(settings, max_new_tokens=CONCLUSION_TOKENS, stop=("\n",))
        texts = generated_answers(cache, tokenizer, again, brief, f"{name}: conclusions")
        for n, text in zip(open_ended, texts, strict=True):
            found[n] = text
    return found


def self_consistent(
    answer: Callable[[GenerationSettings], list[str]], settings: GenerationSettings, samples: int, form: AnswerForm
) -> list[str]:
    """For each question, one of its sampled answers that agrees with the majority.

    Raises InputError at temperature 0, where all samples are equal.
    """
    if samples < 1 or settings.temperature == 0:
        temperature = f"{settings.temperature:g}"
        raise InputError(f"samples must be at least 1 and temperature above 0, got {samples} and {temperature}")
    # Batches take consecutive seeds, so the samples' seeds are far apart.
    sampled = [answer(replace(settings, seed=settings.seed + 10_000 * sample)) for sample in range(samples)]
    return [majority(each, form) for each in zip(*sampled, strict=True)]
