"""Feature-based adaptation (place 4 of figure 1, on top of the output): the decoder is frozen, a classifier is trained.

The features of a text are its pooled hidden states: by default that of the last token after the last norm, since only
this position attends to all tokens. They never change, so they can be computed once (`training/feature_cache.py`). The
classifier, a linear probe, is a logistic regression on them: p(class | text) = softmax(W h + b) (`logistic.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from minillm.adapt.logistic import Logistic
from minillm.adapt.method import Adaptation, check_arguments
from minillm.adapt.surgery import frozen, trained_dtype
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.shapes import Float, Int, Mask

POOLINGS = ("last", "mean", "first")
HEAD = "logistic"


@dataclass(frozen=True)
class FeatureRecipe:
    """How a text becomes one vector: the hidden states after block `layer` (None: after the last norm), pooled.

    The last token attends to the whole text, the first only to itself, so pooling `first` gives the same vector for all
    texts with the same first token. `precision` is for `autocast`. Raises InputError for an unknown pooling.
    """

    layer: int | None = None
    pooling: str = "last"
    precision: str = "float32"

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")

    def stage(self, decoder: Decoder) -> int | None:
        """The `stop` of `Decoder.run_blocks`. Raises InputError for a block that the decoder does not have."""
        if self.layer is None:
            return None
        if not 0 <= self.layer < decoder.config.layers:
            raise InputError(f"layer must be in [0, {decoder.config.layers - 1}] for this decoder, got {self.layer}")
        return self.layer + 1


def pooled(hidden: Float[Tensor, "B T D"], mask: Mask[Tensor, "B T"] | None, pooling: str) -> Float[Tensor, "B D"]:
    """One vector per row: of its last real token, of its first, or the mean. Raises InputError for an Int mask."""
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.dtype != torch.bool:
        raise InputError("a classifier takes one text per row: its mask must be Bool, True for a token")
    if pooling == "mean":
        weights = mask.to(hidden.dtype) / mask.sum(-1, keepdim=True)
        return (hidden * rearrange(weights, "B T -> B T 1")).sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    real = torch.where(mask, places, 0 if pooling == "last" else mask.shape[1] - 1)
    chosen = real.amax(-1) if pooling == "last" else real.amin(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def text_features(
    decoder: Decoder, ids: Int[Tensor, "B T"], recipe: FeatureRecipe, mask: Mask[Tensor, "B T"] | None = None
) -> Float[Tensor, "B D"]:
    """The features of a batch of texts, in the dtype of the hidden states."""
    hidden = decoder.run_blocks(decoder.embed(ids), stop=recipe.stage(decoder), mask=mask)
    return pooled(hidden, mask, recipe.pooling)


class FrozenHead(Adaptation):
    """A classifier on a text's features. Seam: head. Called with ids it returns the logits of the classes, "B C".

    `settings` are the arguments of `Logistic`; `layer` is the block whose output features are taken from (None: after
    the last norm), and `pooling` last, mean or first. Raises InputError for any other value.
    """

    def __init__(
        self, decoder: Decoder, classes: int, settings: Mapping[str, Any] | None = None, layer: int | None = None,
        pooling: str = "last",
    ):  # fmt: skip
        super().__init__(frozen(decoder))
        self.recipe = FeatureRecipe(layer, pooling)
        self.recipe.stage(decoder)
        check_arguments(Logistic, settings or {})
        weight, classifier = decoder.embed.weight, Logistic(self.config.width, classes, **(settings or {}))
        self.classifier = classifier.to(weight.device, trained_dtype(weight))

    def forward(self, ids: Int[Tensor, "B T"], *, mask: Mask[Tensor, "B T"] | None = None) -> Float[Tensor, "B C"]:
        with torch.no_grad():
            features = text_features(self.decoder, ids, self.recipe, mask)
        with torch.autocast(ids.device.type, enabled=False):
            return self.classifier(features.to(self.classifier.weight.dtype))

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> None:
        """Fit the classifier to the features of texts, which `training/feature_cache.py` computes by `recipe`."""
        self.classifier.fit(features, labels)

    def options(self) -> dict[str, Any]:
        settings = {name: getattr(self.classifier, name) for name in ("c", "class_weight", "standardise")}
        return {
            "classes": self.classifier.classes, "head": HEAD, "settings": settings, "layer": self.recipe.layer,
            "pooling": self.recipe.pooling,
        }  # fmt: skip

    @classmethod
    def from_state(cls, decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> "FrozenHead":
        """As `Adaptation.from_state`. Raises InputError if `head` is not logistic."""
        if options["head"] != HEAD:
            raise InputError(f"head must be {HEAD!r}, got {options['head']!r}")
        return super().from_state(decoder, {name: options[name] for name in options if name != "head"}, state)
