"""The examples of a few-shot prompt, random, balanced, in file order or nearest to the text, and their order.

Their choice and order change a small model's accuracy by more than most methods do (Lu et al. 2022).
"""

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.adapt.frozen_head import FeatureRecipe
from minillm.data.tasks import LabelledText, Task
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.shapes import Float
from minillm.tokenizer import Tokenizer
from minillm.training.feature_cache import compute_features


def balanced_shots(task: Task, count: int, seed: int) -> list[LabelledText]:
    """Random training rows with equal class counts, up to 1. Raises InputError if there are too few."""
    order, classes = random.Random(seed), len(task.answers)
    rows = order.sample(task.train, len(task.train))
    shots = []
    for label in range(classes):
        share = count // classes + (label < count % classes)
        shots += [row for row in rows if row.label == label][:share]
    if len(shots) < count:
        raise InputError(
            f"the {len(rows)} training rows do not hold {count} shots with balanced classes; lower --shots"
        )
    order.shuffle(shots)
    return shots


def seeded_shots(task: Task, count: int, seed: int) -> list[LabelledText]:
    """Random training rows of any class."""
    return random.Random(seed).sample(task.train, _enough(task, count))


def ordered_shots(task: Task, count: int, seed: int) -> list[LabelledText]:
    """The first training rows, in file order, for every seed."""
    return task.train[: _enough(task, count)]


def _enough(task: Task, count: int) -> int:
    if count > len(task.train):
        raise InputError(f"the {len(task.train)} training rows do not hold {count} shots; lower --shots")
    return count


def nearest_shots(
    decoder: Decoder, tokenizer: Tokenizer, task: Task, texts: Sequence[str], count: int, pooling: str = "mean"
) -> list[list[LabelledText]]:
    """For each text, the training rows with the most similar features (cosine), the nearest last.

    The features are those of the frozen decoder (Liu et al. 2022), pooled over the tokens. A training row that equals
    the text is excluded.
    """
    _enough(task, count + 1)
    recipe = FeatureRecipe(pooling=pooling)

    def directions(some: Sequence[str], name: str) -> Float[Tensor, "N D"]:
        # An empty text has no features: a newline replaces it. Of a text beyond the context, the start is compared.
        ids = [tokenizer.prompt(text or "\n")[: decoder.config.context_length] for text in some]
        found = compute_features(decoder, ids, recipe, name)
        return F.normalize(found, dim=-1)

    known = [row.text for row in task.train]
    cosines = directions(texts, "features of the texts") @ directions(known, "features of the examples").mT
    cosines[torch.tensor([[text == other for other in known] for text in texts])] = -torch.inf
    best = cosines.topk(count).indices.flip(-1)
    return [[task.train[index] for index in row] for row in best.tolist()]


def orders(shots: Sequence[LabelledText], count: int, seed: int) -> list[list[LabelledText]]:
    """Different orders of the same examples, the given one first. Raises InputError if there are not so many."""
    draw, places = random.Random(seed), range(len(shots))
    if count > math.factorial(len(shots)):
        raise InputError(f"{len(shots)} examples have only {math.factorial(len(shots))} orders, got orders {count}")
    found = [tuple(places)]
    while len(found) < count:
        order = tuple(draw.sample(places, len(places)))
        if order not in found:
            found.append(order)
    return [[shots[place] for place in order] for order in found]
