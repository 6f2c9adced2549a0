"""The activation cache: frozen layers run once per row of tokens, since their output is the same in every epoch.

The hidden states that enter the lowest trained stage (a block, the last norm or the head) are cached when a row is
first processed. No gradient goes below that stage, so a later epoch runs only the stages from it on. The losses are
those of training without a cache, bit for bit in the same batches and up to rounding in others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minillm.adapt.method import Method
from minillm.data.batches import pad_right
from minillm.errors import InputError
from minillm.shapes import Float


def lowest_trained_stage(method: Method) -> int:
    """The lowest trained stage of `Decoder.run_blocks`: a block, L for the last norm, L + 1 for the head.

    0 if nothing can be cached: block 0 or an embedding is trained, no parameter is trained, or there is a prefix.
    """
    trained = (name for name, parameter in method.named_parameters() if parameter.requires_grad)
    lowest = min((_stage(name, method.config.layers) for name in trained), default=0)
    # Not asked of a method whose own prefix is trained: in bfloat16 it can be computed under autocast only.
    with torch.no_grad():
        return 0 if lowest and method.prefix() is not None else lowest


def _stage(name: str, layers: int) -> int:
    """The stage of a method's parameter; 0 for those outside of the blocks, the last norm and the head."""
    path = name.split(".")
    if path[:2] == ["decoder", "blocks"]:
        return int(path[2])
    return {"decoder.norm": layers, "decoder.head": layers + 1}.get(".".join(path[:2]), 0)


class ActivationCache:
    """The hidden states that enter the lowest trained stage, computed once for each row of token ids.

    Raises InputError if `lowest_trained_stage` is 0.
    """

    def __init__(self, method: Method):
        self.method, self.start = method, lowest_trained_stage(method)
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._versions: list[object] | None = None
        if self.start == 0:
            raise InputError("there are no activations to cache: the first block is trained, or there is a prefix")

    def features(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
        """`Decoder.features` of the rows under the method, padded on the right, with gradients.

        Raises InputError if the frozen layers have dropout, or if they or the precision have changed since the first
        call.
        """
        body = self.method.decoder
        self._check()
        missing = [row for row in dict.fromkeys(map(tuple, rows)) if row not in self._rows]
        if missing:
            self._run_frozen_layers(missing)
        states = pad_sequence([self._rows[tuple(row)] for row in rows], batch_first=True)
        return body.run_blocks(states.to(body.embed.weight.device), start=self.start)

    @torch.no_grad()
    def _run_frozen_layers(self, rows: list[tuple[int, ...]]) -> None:
        body = self.method.decoder
        ids, last = pad_right(rows)
        hidden = body.run_blocks(body.embed(ids.to(body.embed.weight.device)), stop=self.start)
        for row, states, end in zip(rows, hidden, last.tolist(), strict=True):
            self._rows[row] = states[: end + 1].clone()

    def _check(self) -> None:
        """Raises InputError for dropout, and if a frozen tensor (its address or version) or the precision changed."""
        body = self.method.decoder
        frozen = [module for block in body.blocks[: self.start] for module in block.modules()]
        dropping = [module for module in frozen if module.training and getattr(module, "dropout", 0) > 0]
        if dropping or (body.training and self.method.config.dropout > 0):
            raise InputError("frozen layers with dropout cannot be cached; set dropout to 0")
        tensors = [p for n, p in self.method.named_parameters() if _stage(n, len(body.blocks)) < self.start]
        if any(tensor.requires_grad for tensor in tensors):
            raise InputError("a frozen layer has become trainable; make a new ActivationCache")
        kind = body.embed.weight.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        now = [half, *((tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in tensors)]
        if self._versions is not None and now != self._versions:
            raise InputError("the frozen weights or the precision have changed; make a new ActivationCache")
        self._versions = now
