"""Fine-tuning (places 4 and 3 of figure 1): the decoder's own weights are trained, the last k blocks or all of them.

The base keeps its weights: what is trained is a copy of the parameters that are named, and the rest is shared. The
more is trained, the better the fit, and the more is forgotten and has to be published.
"""

from collections.abc import Sequence
from typing import Any

from minillm.adapt.method import Method
from minillm.adapt.surgery import frozen, matching, train_copies
from minillm.decoder import Decoder
from minillm.errors import InputError


class FineTune(Method):
    """Train copies of some layers. Seam: PARAMETERS. Equal to the base at the start.

    `layers` is `"all"`, a number k (the last k blocks and the final norm) or patterns of parameter names
    (`blocks.3.*`, `head.weight`). Raises InputError for a pattern that matches nothing and a k that is not there.
    """

    def __init__(self, decoder: Decoder, layers: int | str | Sequence[str] = "all"):
        super().__init__(frozen(decoder))
        self.layers = layers if isinstance(layers, int | str) else list(layers)
        names = [name for name, _ in self.decoder.named_parameters(remove_duplicate=False)]
        chosen = set(matching(names, self._patterns(), "layer"))
        train_copies(self.decoder, chosen.__contains__)

    def _patterns(self) -> list[str]:
        if self.layers == "all":
            return ["*"]
        if not isinstance(self.layers, int):
            return [self.layers] if isinstance(self.layers, str) else self.layers
        last = self.config.layers
        if not 1 <= self.layers <= last:
            raise InputError(f"this decoder has {last} blocks; the last {self.layers} of them cannot be trained")
        final_norm = ["norm.weight"] if self.config.norm_first else []
        return [f"blocks.{index}.*" for index in range(last - self.layers, last)] + final_norm

    def prefix(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        return {"layers": self.layers}
