"""Feature-based adaptation (place 4 of figure 1, on top of the output): the decoder is frozen, a classifier is trained.

The features of a text are the hidden state of its last token, after the last norm: the one position that has read all
of it. They never change, and so can be stored beforehand (`feature_store.py`); what is trained is a multinomial
logistic regression on them, p(class | text) = softmax(W h + b), a convex problem with one best answer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.adapt.method import Adaptation
from minillm.adapt.surgery import frozen
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.shapes import Bool, Float, Int


class FrozenHead(Adaptation):
    """A classifier on the last token's features. Seam: HEAD. Called with ids it returns scores, "B C"."""

    def __init__(self, decoder: Decoder, classes: int):
        super().__init__(frozen(decoder))
        if classes < 2:
            raise InputError(f"a classifier needs two classes at least, not {classes}")
        weight = decoder.embed.weight
        self.classifier = nn.Linear(self.config.width, classes, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, ids: Int[Tensor, "B T"], *, mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B C"]:
        with torch.no_grad():
            hidden = self.decoder.features(ids, mask=mask)
        last = torch.full_like(ids[:, 0], ids.shape[1] - 1) if mask is None else _last_true(mask)
        return self.classifier(hidden[torch.arange(len(ids), device=ids.device), last])

    def options(self) -> dict[str, Any]:
        return {"classes": self.classifier.out_features}

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], c: float) -> None:
        """Minimise ½ |W|² + c Σ cross-entropy (the bias is free) in float64, from W = 0, by L-BFGS.

        `c` is the inverse strength of the penalty, as scikit-learn has it. Raises InputError for one class only.
        """
        if len(labels.unique()) < 2:
            raise InputError("the training rows are all of one class: there is nothing to tell apart")
        features, labels = features.double().cpu(), labels.cpu()
        weight = torch.zeros(self.classifier.weight.shape, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=2000, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def objective():
            optimizer.zero_grad()
            fit = F.cross_entropy(F.linear(features, weight, bias), labels, reduction="sum")
            loss = weight.square().sum() / 2 + c * fit
            loss.backward()
            return loss

        optimizer.step(objective)
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            self.classifier.bias.copy_(bias)


def _last_true(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B"]:
    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask * places).amax(-1)
