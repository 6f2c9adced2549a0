"""Fitting a method: on labels (`fit_to_labels`), on stored features (`fit_head`), on answers in words (`train`)."""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.adapt import FineTune, FrozenHead, Method
from minillm.data.conversations import Conversation, EncodedConversation, answered, encode_conversation, exchange
from minillm.data.templates import Question, Template
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.prompting.forgetting import remedies
from minillm.prompting.lengths import Room, fit, room
from minillm.prompting.scoring import Features, accuracy, answer_scores, log_likelihoods, score_all
from minillm.runtime.device import best_precision
from minillm.runtime.progress import note, progress
from minillm.shapes import Float, Int
from minillm.tokenizer import Tokenizer
from minillm.training import loop
from minillm.training.activation_cache import ActivationCache, lowest_trained_stage
from minillm.training.checkpoints import Checkpoints
from minillm.training.loop import History, Scored
from minillm.training.schedule import TrainingSettings

PENALTIES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0)
"""The grid of C, the inverse strength of a logistic regression's penalty."""
HELD_OUT = 5
"""Without validation rows, C is chosen on every fifth row of each class."""


def _scored(method: Method, answers: Sequence[list[int]]) -> Sequence[list[int]]:
    """The answers' ids, or the classes of a classifier in the head's place."""
    classifies = isinstance(method, FineTune) and method.classes is not None
    return [[label] for label in range(len(answers))] if classifies else answers


def score_labels(
    method: Method, prompts: Sequence[list[int]], answers: Sequence[list[int]], precision: str, name: str,
    features: Features | None = None,
) -> Float[Tensor, "N C"]:  # fmt: skip
    """The score of each answer after each prompt, in the precision of training."""
    return score_all(method, prompts, _scored(method, answers), name, precision, features)


def fit_to_labels(
    method: Method, tokenizer: Tokenizer, prompts: Sequence[list[int]], labels: Int[Tensor, "N"],
    answers: Sequence[list[int]], validation: tuple[Sequence[list[int]], Int[Tensor, "_"]] | None,
    settings: TrainingSettings, on_interrupt: Callable[[], None], name: str, checkpoints: Checkpoints | None = None,
) -> History:  # fmt: skip
    """Gradient descent on the cross-entropy over the answers of all labels, with the epoch of best validation accuracy.

    A replayed row counts as much as a label, with the mean loss of its tokens. The hidden states of frozen layers are
    computed once per row, before the training: in the batches of a step, their rounding would differ in a run that
    continues after a checkpoint.
    """
    start = time.perf_counter()
    cached = ActivationCache(method).features if lowest_trained_stage(method) else None
    scored, (replay, measured) = _scored(method, answers), remedies(method, tokenizer, settings)
    if cached is not None:
        score_labels(method, prompts, answers, settings.precision, f"{name}, frozen layers", cached)
    seconds = time.perf_counter() - start

    def loss(batch: list[tuple[list[int], int] | EncodedConversation]) -> tuple[Tensor, int]:
        own, terms = [row for row in batch if isinstance(row, EncodedConversation)], []
        if rows := [row for row in batch if not isinstance(row, EncodedConversation)]:
            scores = answer_scores(method, [prompt for prompt, _ in rows], scored, cached)
            targets = torch.tensor([label for _, label in rows], device=scores.device)
            terms.append(F.cross_entropy(scores, targets, reduction="sum"))
        if own:
            sums = log_likelihoods(method, own)
            terms.append(-(sums / sums.new_tensor([len(row.targets) for row in own])).sum())
        return torch.stack(terms).sum(), len(batch)

    def validate() -> Scored:
        assert validation is not None
        held, expected = validation
        scores = score_labels(method, held, answers, settings.precision, f"{name}, validation rows", cached)
        return accuracy(scores, expected), F.cross_entropy(scores, expected).item()

    history = loop.train(
        method, [*zip(prompts, labels.tolist(), strict=True), *replay], loss, lambda row: len(row[0]), settings,
        validate=None if validation is None or settings.epochs == 1 else validate, checkpoints=checkpoints,
        on_interrupt=on_interrupt, name=name, forgetting=measured,
    )  # fmt: skip
    history.seconds += seconds
    return history


def fit_head(
    decoder: Decoder, classes: int, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"],
    validation: tuple[Float[Tensor, "_ D"], Int[Tensor, "_"]] | None,
) -> tuple[FrozenHead, float]:  # fmt: skip
    """The logistic regression, and its C: that of the lowest validation loss.

    Accuracy would decide by a handful of rows. Features are standardised, so one grid fits every decoder.
    """
    train_rows, held = (slice(None), validation) if validation is not None else _held_out(features, labels)

    def fitted(c: float, rows: Tensor | slice = slice(None)) -> FrozenHead:
        method = FrozenHead(decoder, classes, settings={"c": c, "standardise": True})
        method.fit(features[rows], labels[rows])
        return method

    def loss(c: float) -> float:
        return F.cross_entropy(fitted(c, train_rows).classifier.scores(held[0]), held[1]).item()

    best = min(PENALTIES, key=loss)
    return fitted(best), best


def _held_out(features: Tensor, labels: Tensor) -> tuple[Tensor | slice, tuple[Tensor, Tensor]]:
    """The rows to fit, and the rows to choose C on; all rows for both if a class has too few."""
    if labels.bincount().min() < HELD_OUT:
        return slice(None), (features, labels)
    places = torch.stack([(labels[:row] == label).sum() for row, label in enumerate(labels)])
    held = places % HELD_OUT == HELD_OUT - 1
    return ~held, (features[held], labels[held])


def _encode_exchanges(
    tokenizer: Tokenizer, exchanges: Sequence[Conversation], available: Room, truncate: str
) -> list[list[EncodedConversation]]:
    """Prompts of templates, and their answers with the end of text. Raises InputError as `lengths.fit`."""
    if tokenizer.eos is None:
        raise InputError("training on answers in words needs a tokenizer with an end of text (eos); this one has none")
    answers = [[*tokenizer.encode(row.messages[-1]["content"]), tokenizer.eos] for row in exchanges]
    rooms = [available._replace(answer=len(answer) - 1) for answer in answers]
    questions = [Question(Template(row.template or "{text}"), row.text) for row in exchanges]
    _, prompts = fit(tokenizer, questions, rooms, truncate, [row.place for row in exchanges])
    return [[answered(prompt, answer)] for prompt, answer in zip(prompts, answers, strict=True)]


def encode_conversations(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], available: Room, truncate: str = "error"
) -> list[list[EncodedConversation]]:
    """The rows of each conversation, within the room that is available without an answer.

    With `truncate` left or right, the text of a prompt template is cut, or whole turns are left out there until a
    conversation fits. Raises InputError for a row that is too long, and as `encode_conversation`.
    """
    if conversations[0].template is not None:
        return _encode_exchanges(tokenizer, conversations, available, truncate)
    encoded, sizes, cut, most = [], [], 0, available.prompt + 1
    for conversation in progress(conversations, desc="encoding", unit="conversation"):
        rest, rows = conversation, encode_conversation(tokenizer, conversation)
        while max(len(row.ids) for row in rows) > most and (shorter := rest.without_turn(truncate)):
            rest, rows = shorter, encode_conversation(tokenizer, shorter)
        encoded.append(rows)
        sizes.append(max(len(row.ids) for row in rows))
        cut += rest is not conversation
    if long := [n for n, size in enumerate(sizes) if size > most]:
        hint = ", or set truncate (--truncate) to left or right, the side where whole turns are left out"
        raise InputError(
            f"{conversations[long[0]].place}: the conversation has {sizes[long[0]]} tokens, and {most} fit "
            f"({available}); {len(long)} of {len(sizes)} are too long, the longest has {max(sizes)}: shorten their "
            f"turns{hint * (truncate == 'error')}"
        )
    if cut:
        note(f"truncated ({truncate}): {cut} of {len(sizes)} conversations, by whole turns")
    return encoded


def fit_to_answers(
    method: Method, tokenizer: Tokenizer, rows: Sequence[EncodedConversation], settings: TrainingSettings,
    validate: Callable[[], Scored] | None = None, on_interrupt: Callable[[], None] | None = None,
    checkpoints: Checkpoints | None = None, capacity: int | None = None,
) -> History:  # fmt: skip
    """Gradient descent on the mean cross-entropy of the answers' tokens, without a loss on the prompts.

    With a capacity, the rows of a batch are packed into rows of so many tokens, with the same loss.
    """

    def loss(rows: list[EncodedConversation]) -> tuple[Tensor, int]:
        return -log_likelihoods(method, rows, capacity).sum(), sum(len(row.targets) for row in rows)

    replay, measured = remedies(method, tokenizer, settings)
    return loop.train(
        method, [*rows, *replay], loss, lambda row: len(row.ids), settings, validate=validate,
        checkpoints=checkpoints, on_interrupt=on_interrupt, forgetting=measured,
    )  # fmt: skip


def train(
    method: Method, tokenizer: Tokenizer, exchanges: Sequence[tuple[str, str]], *, epochs: int = 3,
    learning_rate: float = 1e-3, batch_size: int = 16, seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> History:  # fmt: skip
    """Train a method to continue each prompt with its answer: (prompt, answer) pairs of text.

    1e-3 is a learning rate for LoRA; full fine-tuning takes about 2e-5. The method is in evaluation mode afterwards.
    Raises InputError without pairs, for one that exceeds the context, for a tokenizer without an end of text, and when
    the loss is not finite.
    """
    if not exchanges:
        raise InputError("there are no (prompt, answer) pairs to train on")
    precision = best_precision(method.decoder.embed.weight.device)
    settings = TrainingSettings(
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, precision=precision, seed=seed
    )
    pairs = [exchange(prompt, answer, "{text}", f"exchanges[{n}]") for n, (prompt, answer) in enumerate(exchanges)]
    rows = [row for rows in encode_conversations(tokenizer, pairs, room(method, 0, precision)) for row in rows]
    return fit_to_answers(method, tokenizer, rows, settings, checkpoints=checkpoints)
