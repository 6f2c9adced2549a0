"""Feature-based adaptation (place 4 of figure 1, on top of the output): the decoder is frozen, a classifier is trained.

The features of a text are its hidden states, pooled: by default the last token's after the last norm, the one position
that has read all of it. They never change, and so can be stored beforehand (`feature_store.py`). What is trained is a
head on them (`heads.py`): by default a logistic regression, p(class | text) = softmax(W h + b).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minillm.adapt.heads import make_head
from minillm.adapt.method import Adaptation, restore
from minillm.adapt.surgery import frozen
from minillm.decoder import Decoder
from minillm.shapes import Bool, Float, Int
from minillm.training.feature_cache import Recipe, StoredFeatures, text_features


class FrozenHead(Adaptation):
    """A classifier on a text's features. Seam: HEAD. Called with ids it returns scores, "B C".

    `head` is logistic, ridge, centroid, neighbours or mlp, with its own `settings`; `layer` is the block whose output
    is read (None: after the last norm), and `pooling` last, mean or first. Raises InputError for what there is not.
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
        self.recipe, self.head = Recipe(layer, pooling), head
        self.recipe.stage(decoder)
        weight = decoder.embed.weight
        # The head keeps float32 (or float64) where the decoder is held in half precision.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.classifier = make_head(head, self.config.width, classes, settings or {}).to(weight.device, dtype)

    def forward(self, ids: Int[Tensor, "B T"], *, mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B C"]:
        with torch.no_grad():
            features = text_features(self.decoder, ids, self.recipe, mask)
        home = next(iter(self.state().values()))
        with torch.autocast(ids.device.type, enabled=False):
            return self.classifier(features.to(home.dtype))

    def fit(self, features: Float[Tensor, "N D"] | StoredFeatures, labels: Int[Tensor, "N"]) -> None:
        """Fit the head to texts' features, as `stored_features` or `compute_features` found them by `recipe`."""
        self.classifier.fit(features, labels)

    def state(self) -> dict[str, Tensor]:
        """Centroids and neighbours are buffers: gradients train nothing of them, and yet they are the method."""
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
