"""A LoRA as a GGUF file, for llama.cpp's `--lora`: A and B of each matrix, under the name of its tensor in `gguf.py`.

llama.cpp adds (alpha / r) B A x, with one alpha for all and r the rows of A; other scales are multiplied into B. The
rows of B have the order of the rows of W in the file. GPT-2's fused matrix gets one update with the sum of its parts'
ranks.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minillm.adapt.dora import DoRA
from minillm.adapt.low_rank import AdaptedMatrix, LowRank, adapted_matrices
from minillm.adapt.method import Adaptation
from minillm.errors import InputError
from minillm.hub.gguf import LAYOUTS
from minillm.hub.gguf_export import described, write
from minillm.hub.layout import Entry


def export_lora(method: Adaptation, path: str | Path) -> None:
    """Write the file atomically. Raises InputError for an adapter that llama.cpp cannot add to a base."""
    import gguf

    if not isinstance(method, LowRank) or isinstance(method, DoRA):
        raise _unsupported(type(method).__name__)
    if method.low_rank.train_bias:
        raise _unsupported("trained biases")
    adapted, (architecture, _) = adapted_matrices(method.decoder), described(method.config)
    for name in adapted:
        if not name.startswith("blocks.") and (name != "head" or method.config.tie_embeddings):
            raise _unsupported(f"update of {name}" + " where it is tied" * method.config.tie_embeddings)
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", method.alpha)
    for entry in LAYOUTS[architecture].entries(method.decoder):
        parts = {part: adapted.get(part.removesuffix(".weight")) for part in entry.parts}
        if any(parts.values()):
            for factor, tensor in _update(entry, parts, method).items():
                writer.add_tensor(f"{entry.name}.lora_{factor}", tensor.float().cpu().numpy())
    write(writer, path)


def _update(entry: Entry, parts: Mapping[str, AdaptedMatrix | None], method: LowRank) -> dict[str, Tensor]:
    """A and B of a stored tensor: each part has its own rows of A and the same columns of B."""
    states = {part: matrix.state() for part, matrix in parts.items() if matrix is not None}
    a = torch.cat([state["a"] for state in states.values()])
    rows, start = {}, 0
    for part, matrix in parts.items():
        rows[part] = a.new_zeros(len(method.decoder.get_parameter(part)), len(a))
        if matrix is not None:
            b = states[part]["b"]
            rows[part][:, start : start + b.shape[1]] = matrix.scale * len(a) / method.alpha * b
            start += b.shape[1]
    return {"a": a, "b": entry.join(rows)}


def _unsupported(what: str) -> InputError:
    return InputError(
        f"llama.cpp's --lora has no {what}: export the merged model, `minillm export BASE --adapter DIR --out FILE`"
    )
