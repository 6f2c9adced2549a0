"""Fine-tuning (places 4 and 3 of figure 1): the output layer, the last blocks or all weights are trained.

Copies of the named parameters are trained; the others are shared with the base, which is not changed. Training more
parameters fits better, forgets more and makes a larger adapter. Gradients stop at the lowest trained layer; the hidden
states that enter it can be cached (`training/activation_cache.py`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minillm.adapt.frozen_head import pooled
from minillm.adapt.method import Method
from minillm.adapt.surgery import frozen, matching, train_copies
from minillm.decoder import Decoder, Linear
from minillm.errors import InputError
from minillm.shapes import Float, Int, Mask

OUTPUT = "output"


class FineTune(Method):
    """Train copies of some layers. Seam: parameters. Equal to the base at the start, unless it is a classifier.

    `layers` is `"all"`, `"output"` (the head alone), a number k (the last k blocks and the final norm) or patterns of
    parameter names (`blocks.3.*`, `head.weight`). `classes` replaces the LM head by a classifier of the last token,
    which is trained too: a number of classes (weights start at zero), or token ids (weights start as their rows of the
    LM head); called with ids the method then returns "B C". Raises InputError for a pattern that matches nothing, and
    for a k, classes or tokens that are not possible.
    """

    def __init__(
        self, decoder: Decoder, layers: int | str | Sequence[str] = "all", classes: int | Sequence[int] | None = None
    ):
        super().__init__(frozen(decoder))
        self.layers = layers if isinstance(layers, int | str) else list(layers)
        self.classes = classes if classes is None or isinstance(classes, int) else list(classes)
        if self.classes is not None:
            # The new parameters are trained whatever `layers` names.
            self.decoder.head = self._classifier(self.classes)
        names = [name for name, _ in self.decoder.named_parameters(remove_duplicate=False)]
        train_copies(self.decoder, set(matching(names, self._patterns(), "layer")).__contains__)

    def _patterns(self) -> list[str]:
        if self.layers in ("all", OUTPUT):
            return ["*" if self.layers == "all" else "head.*"]
        if not isinstance(self.layers, int):
            return [self.layers] if isinstance(self.layers, str) else self.layers
        last = self.config.layers
        if not 1 <= self.layers <= last:
            raise InputError(f"layers must be in [1, {last}] or {OUTPUT!r} (the head alone), got {self.layers}")
        final_norm = ["norm.*"] if self.config.norm_first else []
        return [f"blocks.{index}.*" for index in range(last - self.layers, last)] + final_norm

    @torch.no_grad()
    def _classifier(self, classes: int | list[int]) -> Linear:
        rows, width = self.decoder.head.weight, self.config.width
        tokens = None if isinstance(classes, int) else classes
        count = classes if isinstance(classes, int) else len(classes)
        if count < 2:
            raise InputError(f"a classifier needs at least 2 classes, got {count}")
        if tokens is not None and (len(set(tokens)) < count or not all(0 <= token < len(rows) for token in tokens)):
            raise InputError(f"the tokens of classes must be distinct ids in [0, {len(rows) - 1}], got {tokens}")
        classifier = Linear(width, count, bias=tokens is None, device=rows.device, dtype=rows.dtype)
        if tokens is None:
            for parameter in classifier.parameters():
                parameter.zero_()
        else:
            classifier.weight.copy_(rows[tokens])
        return classifier

    def forward(
        self, ids: Int[Tensor, "B T"], *, mask: Mask[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"] | Float[Tensor, "B C"]:
        hidden = self.decoder.features(ids, mask=mask)
        return self.decoder.head(hidden if self.classes is None else pooled(hidden, mask, "last"))

    def options(self) -> dict[str, Any]:
        return {"layers": self.layers, "classes": self.classes}
