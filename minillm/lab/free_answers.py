"""Adaptation to free answers and conversations. The loss is computed on the tokens of the answers only.

Measurements on the test rows, of the base and after training: the loss in nats per token, the perplexity, and greedy
answers. Exact match is the share of greedy answers that equal the expected ones; keyword match is the share that have
all keywords. `prompting/forgetting.py` measures forgetting.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from statistics import fmean
from typing import Any

from minillm.adapt import Method
from minillm.data.batches import generation_batches
from minillm.data.conversations import Conversation, Conversations, EncodedConversation
from minillm.generation import LanguageModel
from minillm.lab.experiment import Experiment
from minillm.prompting.answering import GenerationSettings, complete
from minillm.prompting.fitting import encode_conversations, fit_to_answers
from minillm.prompting.forgetting import held_out, own_text
from minillm.prompting.lengths import room
from minillm.runtime.device import autocast
from minillm.runtime.progress import note, progress
from minillm.training.checkpoints import Checkpoints
from minillm.training.schedule import TrainingSettings

BATCH = 16
SAMPLES, SAMPLE_TOKENS = 3, 64
"""Answers that are shown, and the tokens that an answer may have if the expected one is shorter."""
MANY_UNKNOWN = 0.05
"""With a larger share of unknown tokens, a warning is printed."""


def adapt_to_answers(
    experiment: Experiment, task: Conversations, method: Method, settings: TrainingSettings,
    on_trained: Callable[[], None], truncate: str = "error", checkpoints: Checkpoints | None = None,
    exact: bool = True, pack: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a method on the answers, select the epoch with the lowest validation loss, and measure it on test rows."""
    rows, first, last = [*task.train, *task.validation, *task.test], len(task.train), -len(task.test)
    available = room(method, 0, experiment.precision)
    encoded = encode_conversations(experiment.tokenizer, rows, available, truncate)
    ids = [token for rows in encoded for row in rows for token in row.ids]
    if (unknown := sum(token == experiment.tokenizer.unk for token in ids) / len(ids)) > MANY_UNKNOWN:
        note(f"warning: {unknown:.0%} of the tokens are unknown to the tokenizer of this base; use another --base")
    train, validation, test = (
        [row for rows in part for row in rows] for part in (encoded[:first], encoded[first:last], encoded[last:])
    )
    asked = [rows[-1] for rows in encoded[last:]]
    method.eval()
    own = own_text(method, experiment.tokenizer, experiment.precision, experiment.seed)
    before = losses(experiment, method.decoder, test, own)
    shown = [answers(experiment, method.decoder, asked[:SAMPLES], SAMPLE_TOKENS)]
    validate = partial(held_out, method, validation, experiment.precision, "validation loss")
    history = fit_to_answers(
        method, experiment.tokenizer, train, settings, lambda: (-(nats := validate()), nats), on_interrupt=on_trained,
        checkpoints=checkpoints, capacity=None if pack is None else min(pack, available.prompt),
    )  # fmt: skip
    on_trained()
    start = time.perf_counter()
    after = losses(experiment, method, test, own)
    shown.append(answers(experiment, method, asked[:SAMPLES], SAMPLE_TOKENS))
    return {
        **after,
        **{f"{name}_before": value for name, value in before.items()},
        "forgetting": after["own_text_nats"] - before["own_text_nats"],
        **matches(experiment, method, task.test, asked, exact),
        "train_seconds": history.seconds,
        "eval_seconds": time.perf_counter() - start,
        "tokens_per_second": history.tokens / history.seconds,
        "samples": [
            {"prompt": row.text, "expected": expected(experiment, one), "before": base, "after": trained}
            for row, one, base, trained in zip(task.test, asked, *shown, strict=False)
        ],
        "validation": [-score for score in history.validation],
        "losses": history.losses,
    }


def losses(
    experiment: Experiment, model: LanguageModel, test: Sequence[EncodedConversation],
    own: Sequence[EncodedConversation],
) -> dict[str, float]:  # fmt: skip
    """The losses on the answers of the test rows and on the base's own text."""
    nats, on_own = (held_out(model, rows, experiment.precision, "validation loss") for rows in (test, own))
    perplexity = math.exp(min(nats, 700))  # larger ones are no float
    return {"nats_per_token": nats, "perplexity": perplexity, "own_text_nats": on_own}


def matches(
    experiment: Experiment, method: Method, rows: Sequence[Conversation],
    asked: Sequence[EncodedConversation], exact: bool,
) -> dict[str, float]:  # fmt: skip
    """Exact match, if wanted, and keyword match, if the rows have keywords."""
    keywords = [row.keywords for row in rows if row.keywords]
    if not (exact or keywords):
        return {}
    texts, found = answers(experiment, method, asked, SAMPLE_TOKENS if keywords else 0), {}
    if exact:
        found["exact_match"] = fmean(text == expected(experiment, row) for text, row in zip(texts, asked, strict=True))
    if keywords:
        found["keyword_match"] = fmean(
            all(word.strip().lower() in text.lower() for word in words)
            for text, words in zip(texts, keywords, strict=True)
        )
    return found


def expected(experiment: Experiment, row: EncodedConversation) -> str:
    """The text of the last answer of a row, without its end."""
    tokenizer = experiment.tokenizer
    return tokenizer.decode([*takewhile(lambda token: token not in tokenizer.stop, row.ids[row.answer :])]).strip()


def answers(
    experiment: Experiment, model: LanguageModel, rows: Sequence[EncodedConversation], least: int
) -> list[str]:  # fmt: skip
    """Greedy answers in place of the last answers of the rows.

    They end after one token more than the longest expected answer of a batch, or `least` tokens, if the context has
    them: for exact match, longer outputs are wrong anyway.
    """
    most, found = room(model, 0, experiment.precision).prompt, [""] * len(rows)
    prompts = [row.ids[: row.answer] for row in rows]
    starts, lengths = [row.answer for row in rows], [max(least, len(row.ids) - row.answer) for row in rows]
    for batch in progress(generation_batches(starts, lengths, BATCH, most), desc="answers", unit="batch"):
        longest = min(max(lengths[n] for n in batch) + 1, most - max(starts[n] for n in batch))
        settings = GenerationSettings(max_new_tokens=longest, stop=())
        with autocast(experiment.device, experiment.precision):
            texts = complete(model, experiment.tokenizer, [prompts[n] for n in batch], settings)
        for n, text in zip(batch, texts, strict=True):
            found[n] = text.strip()
    return found
