"""Feature-based adaptation (place 4 of figure 1, on top of the output): the decoder is frozen, a classifier is trained.

The features of a text are its hidden states, pooled: by default the last token's after the last norm, the one position
that attends to all of it. They never change, so they can be computed once (`training/feature_cache.py`). A head on them
is trained (`heads.py`): by default a logistic regression, p(class | text) = softmax(W h + b).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from minillm.adapt.heads import make_head
from minillm.adapt.method import Adaptation, restore
from minillm.adapt.surgery import frozen, trained_dtype
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.shapes import Bool, Float, Int

POOLINGS = ("last", "mean", "first")


@dataclass(frozen=True)
class FeatureRecipe:
    """How a text becomes one vector: the hidden states after block `layer` (None: after the last norm), pooled.

    The last token attends to the whole text, the first to nothing but itself, for the decoder is causal: where BERT has
    its [CLS], a decoder has a constant, and `first` is offered to show this. Raises InputError for another pooling.
    """

    layer: int | None = None
    pooling: str = "last"
    precision: str = "float32"

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise InputError(f"there is no pooling {self.pooling!r}; there is: {', '.join(POOLINGS)}")

    def stage(self, decoder: Decoder) -> int | None:
        """The `stop` of `Decoder.run_blocks`. Raises InputError for a block that is not there."""
        if self.layer is None:
            return None
        if not 0 <= self.layer < decoder.config.layers:
            raise InputError(f"there is no block {self.layer}: this decoder has 0 to {decoder.config.layers - 1}")
        return self.layer + 1


def pooled(hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None, pooling: str) -> Float[Tensor, "B D"]:
    """One vector a row: of its last real token, of its first, or the mean of all of them."""
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if pooling == "mean":
        weights = mask.to(hidden.dtype) / mask.sum(-1, keepdim=True)
        return (hidden * rearrange(weights, "B T -> B T 1")).sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    real = torch.where(mask, places, 0 if pooling == "last" else mask.shape[1] - 1)
    chosen = real.amax(-1) if pooling == "last" else real.amin(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def text_features(
    decoder: Decoder, ids: Int[Tensor, "B T"], recipe: FeatureRecipe, mask: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B D"]:
    """The features of a batch of texts, in the dtype of the hidden states."""
    hidden = decoder.run_blocks(decoder.embed(ids), stop=recipe.stage(decoder), mask=mask)
    return pooled(hidden, mask, recipe.pooling)


class FrozenHead(Adaptation):
    """A classifier on a text's features. Seam: HEAD. Called with ids it returns scores, "B C".

    `head` is logistic, ridge, centroid, neighbours or mlp, with its own `settings`; `layer` is the block from whose
    output features are taken (None: after the last norm), and `pooling` last, mean or first. Raises InputError for any
    other.
    """

    def __init__(
        self,
        decoder: Decoder,
        classes: int,
        head: str = "logistic",
        settings: Mapping[str, Any] | None = None,
        layer: int | None = None,
        pooling: str = "last",
    ):
        super().__init__(frozen(decoder))
        self.recipe, self.head = FeatureRecipe(layer, pooling), head
        self.recipe.stage(decoder)
        weight, classifier = decoder.embed.weight, make_head(head, self.config.width, classes, settings or {})
        self.classifier = classifier.to(weight.device, trained_dtype(weight))

    def forward(self, ids: Int[Tensor, "B T"], *, mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B C"]:
        with torch.no_grad():
            features = text_features(self.decoder, ids, self.recipe, mask)
        home = next(iter(self.state().values()))
        with torch.autocast(ids.device.type, enabled=False):
            return self.classifier(features.to(home.dtype))

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> None:
        """Fit the head to the features of texts, which `training/feature_cache.py` computes by `recipe`."""
        self.classifier.fit(features, labels)

    def state(self) -> dict[str, Tensor]:
        """Centroids and neighbours are buffers: no gradient trains them, and still they are the method."""
        return super().state() | {f"classifier.{name}": tensor for name, tensor in self.classifier.named_buffers()}

    def options(self) -> dict[str, Any]:
        head = self.classifier
        return {
            "classes": head.classes, "head": self.head, "settings": dict(head.settings), "layer": self.recipe.layer,
            "pooling": self.recipe.pooling,
        }  # fmt: skip

    @classmethod
    def from_state(cls, decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> "FrozenHead":
        """The method that had these options and this state."""
        method = cls(decoder, **options)
        restore(method.state(), state)
        return method
