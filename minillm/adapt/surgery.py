"""A second body over the same weights, whose modules can be replaced without changing the decoder.

The base's weights are frozen here, and copies of them are made trainable.
"""

import copy
import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from minillm.decoder import Decoder, Embedding
from minillm.errors import InputError
from minillm.quantised import Quantised

ALL_LINEAR = "all-linear"
PEFT_NAMES = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "lm_head": "head", "embed_tokens": "embed",
}  # fmt: skip
"""peft's (and transformers') names of a Llama's modules, accepted in patterns."""


def frozen(decoder: Decoder, dtype: torch.dtype | None = None) -> Decoder:
    """A decoder over the same weights, none of them trainable; replacing its modules does not change the base.

    With a `dtype` the Linears of the blocks are copied into it (half the bytes in bfloat16); embeddings, head, norms
    and the residual stream keep theirs. Run it under autocast.
    """
    shared = {id(tensor): nn.Parameter(tensor.detach(), requires_grad=False) for tensor in decoder.parameters()}
    body = copy.deepcopy(decoder, shared)
    if dtype is not None:
        lower(body, dtype)
    return body


def lower(body: Decoder, dtype: torch.dtype) -> None:
    """Cast the Linears of this body's blocks to `dtype`, in place, except quantised and trainable ones."""
    for linear in linears(body).values():
        kept = [parameter.requires_grad or isinstance(parameter, Quantised) for parameter in linear.parameters()]
        if not any(kept):
            linear.to(dtype)


def trained_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of trained parameters: float32 (or float64), also where the frozen weights are in half precision."""
    return torch.promote_types(weight.dtype, torch.float32)


def linears(decoder: Decoder) -> dict[str, nn.Linear]:
    """The Linears of the blocks by path: `blocks.0.attention.query`, ..."""
    return {
        path: module
        for path, module in decoder.named_modules()
        if path.startswith("blocks.") and isinstance(module, nn.Linear)
    }


def matrices(decoder: Decoder) -> dict[str, nn.Linear | Embedding]:
    """The Linears of the blocks, the head and the embedding tables, by path. A tied matrix is listed twice."""
    ends = {path: module for path, module in decoder.named_children() if isinstance(module, nn.Linear | Embedding)}
    return linears(decoder) | ends


def matching(paths: Iterable[str], patterns: Iterable[str], what: str) -> list[str]:
    """The paths that match a pattern: a role (`query`, `feed_forward.up`, or peft's name, `q_proj`), a path with
    wildcards (`blocks.3.*`) or `all-linear`, those in the blocks. Raises InputError for a pattern that matches none.
    """
    paths, found = list(paths), set()
    for pattern in patterns:
        hits = {path for path in paths if _matches(path, pattern)}
        if not hits:
            roles = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
            near = difflib.get_close_matches(pattern, roles + paths, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{what} {pattern!r} matches nothing in this decoder, which has {', '.join(roles)}{hint}")
        found |= hits
    return [path for path in paths if path in found]


def _matches(path: str, pattern: str) -> bool:
    if pattern == ALL_LINEAR:
        return path.startswith("blocks.")
    pattern = ".".join(PEFT_NAMES.get(part, part) for part in pattern.split("."))
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def replace(body: Decoder, path: str, module: nn.Module) -> None:
    """Replace the module at this path of this body."""
    parent, _, name = path.rpartition(".")
    setattr(body.get_submodule(parent), name, module)


def train_copies(decoder: Decoder, chosen: Callable[[str], bool]) -> None:
    """Give this body trainable copies of the parameters whose names are chosen.

    A parameter with two names (a tied head) stays tied if both are chosen, and is untied if one of them is.
    """
    copies: dict[int, nn.Parameter] = {}
    for name, parameter in list(decoder.named_parameters(remove_duplicate=False)):
        if not chosen(name):
            continue
        owner, _, last = name.rpartition(".")
        trained = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
        setattr(decoder.get_submodule(owner), last, trained)
