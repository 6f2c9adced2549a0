"""A family of adapters on one base: many tasks, one set of weights, and batches whose rows use different adapters.

Switching to another member is a dictionary look-up. In a mixed batch the rows of the base and of plain LoRAs share the
products with the frozen matrices, and each row adds its own s B A x (Chen et al. 2023; Sheng et al. 2023;
`ops/lora_by_row.py`). Other members (with a prefix, or weights of their own) run on their rows separately. Everything
is differentiable, so several members can be trained in one batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minillm.adapt.lora import LoRA, LoRALinear
from minillm.adapt.low_rank import adapted_matrices
from minillm.adapt.method import Adaptation, Method, is_language_model
from minillm.adapt.surgery import frozen, linears, replace
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.operations import linear, lora_by_row
from minillm.shapes import Float, Int, Mask

BASE = "base"


class RowwiseLinear(nn.Module):
    """A frozen Linear with an update, or none, for each row of a batch."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.factors: tuple[Tensor, Tensor, Tensor] | None = None

    def use(self, updates: Sequence[LoRALinear | None]) -> None:
        """Stack A and scale · B of the distinct updates, padded to one rank, with the index of each row's update."""
        there = list({id(update): update for update in updates if update is not None}.values())
        if not there:
            self.factors = None
            return
        a = pad_sequence([update.a for update in there], batch_first=True)
        b = pad_sequence([update.scale * update.b.T for update in there], batch_first=True).mT.contiguous()
        places = {id(update): place for place, update in enumerate(there)}
        self.factors = a, b, torch.tensor([places.get(id(update), -1) for update in updates], device=a.device)

    def forward(self, hidden: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        if self.factors is None:
            return linear(hidden, self.weight, self.bias)
        return lora_by_row(hidden, self.weight, self.bias, *self.factors)


class Family(nn.Module):
    """Members by name over one decoder; `base` is the decoder itself, always a member.

    Raises InputError for an unknown name, and for a member that does not return next-token logits.
    """

    def __init__(self, decoder: Decoder, members: Mapping[str, Adaptation]):
        super().__init__()
        if BASE in members:
            raise InputError(f"the name {BASE!r} is reserved for the decoder itself; choose another")
        self.decoder, self.members, self.methods = decoder, nn.ModuleList(members.values()), dict[str, Method]()
        for name, member in members.items():
            if not is_language_model(member):
                raise InputError(f"{name!r} is a {type(member).__name__}: a classifier, not a language model")
            self.methods[name] = member
        self.shared = frozen(decoder)
        for path, matrix in linears(self.shared).items():
            replace(self.shared, path, RowwiseLinear(matrix))

    def __getitem__(self, name: str) -> Decoder | Method:
        """The member of that name: switching is this look-up."""
        if name == BASE:
            return self.decoder
        if name not in self.methods:
            raise InputError(f"this family has no adapter {name!r}; it has {', '.join([BASE, *self.methods])}")
        return self.methods[name]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters for the optimizer, each name prefixed by its member's name."""
        return {
            f"{name}.{path}": parameter
            for name, member in self.methods.items()
            for path, parameter in member.trainable().items()
        }

    def forward(
        self, ids: Int[Tensor, "B T"], names: Sequence[str], *, mask: Mask[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Next-token logits of each row, by the member that `names` gives for it."""
        if len(names) != len(ids):
            raise InputError(f"names must have one name per row: {len(ids)}, got {len(names)}")
        rows_of = {name: [row for row, other in enumerate(names) if other == name] for name in names}
        together = sorted(row for name, rows in rows_of.items() if _goes_with_others(self[name]) for row in rows)
        groups: list[tuple[list[int], Decoder | Method]] = []
        if together:
            self._use([self[names[row]] for row in together])
            groups.append((together, self.shared))
        groups += [(rows, self[name]) for name, rows in rows_of.items() if not _goes_with_others(self[name])]
        logits = [member(ids[rows], mask=None if mask is None else mask[rows]) for rows, member in groups]
        order = torch.tensor([row for rows, _ in groups for row in rows], device=ids.device)
        return torch.cat(logits)[order.argsort()]

    def _use(self, members: Sequence[Decoder | Method]) -> None:
        """Set the update of each row for the next forward pass, in every shared matrix."""
        updates = [adapted_matrices(member.decoder) for member in members]
        for path, matrix in self.shared.named_modules():
            if isinstance(matrix, RowwiseLinear):
                matrix.use([each.get(path) for each in updates])  # pyright: ignore[reportArgumentType]


def _goes_with_others(member: Decoder | Method) -> bool:
    """Whether the member is the base, or only adds s B A to Linears of the blocks."""
    if isinstance(member, Decoder):
        return True
    if type(member) is not LoRA or member.low_rank.train_bias or (member.training and member.low_rank.dropout > 0):
        return False
    return all(path.startswith("blocks.") for path in adapted_matrices(member.decoder))
