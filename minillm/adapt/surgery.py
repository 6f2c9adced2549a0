"""Operating on a decoder without touching it: a second body over the same weights, in which parts are replaced.

This is the one place that freezes and unfreezes.
"""

import copy
import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from minillm.decoder import Decoder, Embedding
from minillm.errors import InputError

ALL_LINEAR = "all-linear"


def frozen(decoder: Decoder, dtype: torch.dtype | None = None) -> Decoder:
    """A decoder over the same weights, none of them trainable; what is replaced in it leaves the base as it was.

    With a `dtype` the blocks' matrices are copied into it (half the bytes in bfloat16), while embeddings, norms and
    so the residual stream keep theirs; run it under autocast.
    """
    shared = {id(tensor): nn.Parameter(tensor.detach(), requires_grad=False) for tensor in decoder.parameters()}
    body = copy.deepcopy(decoder, shared)
    if dtype is not None:
        lower(body, dtype)
    return body


def lower(body: Decoder, dtype: torch.dtype) -> None:
    """Hold the frozen matrices of this body's blocks in `dtype`; what is trained keeps its own."""
    for linear in linears(body).values():
        if not any(parameter.requires_grad for parameter in linear.parameters()):
            linear.to(dtype)


def trained_dtype(weight: Tensor) -> torch.dtype:
    """What is trained keeps float32 (or float64) where the frozen weights are in half precision."""
    return torch.promote_types(weight.dtype, torch.float32)


def linears(decoder: Decoder) -> dict[str, nn.Linear]:
    """The Linears of the blocks by path: `blocks.0.attention.query`, ..."""
    return {
        path: module
        for path, module in decoder.named_modules()
        if path.startswith("blocks.") and isinstance(module, nn.Linear)
    }


def matrices(decoder: Decoder) -> dict[str, nn.Linear | Embedding]:
    """The Linears of the blocks, the head and the embedding tables, by path. A tied head is there by both its sides."""
    ends = {path: module for path, module in decoder.named_children() if isinstance(module, nn.Linear | Embedding)}
    return linears(decoder) | ends


def matching(paths: Iterable[str], patterns: Iterable[str], what: str) -> list[str]:
    """The paths that match a pattern: a role (`query`, `feed_forward.up`), a path with wildcards (`blocks.3.*`) or
    `all-linear`, those in the blocks. Raises InputError for a pattern that matches none, naming the nearest."""
    paths, found = list(paths), set()
    for pattern in patterns:
        hits = {path for path in paths if _matches(path, pattern)}
        if not hits:
            roles = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
            near = difflib.get_close_matches(pattern, roles + paths, n=3, cutoff=0.5)
            hint = f" (nearest: {', '.join(near)})" if near else ""
            raise InputError(f"{what} {pattern!r} matches nothing in this decoder; it has: {', '.join(roles)}{hint}")
        found |= hits
    return [path for path in paths if path in found]


def _matches(path: str, pattern: str) -> bool:
    if pattern == ALL_LINEAR:
        return path.startswith("blocks.")
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def replace(body: Decoder, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at this path, in this body."""
    parent, _, name = path.rpartition(".")
    setattr(body.get_submodule(parent), name, module)


def train_copies(decoder: Decoder, chosen: Callable[[str], bool]) -> None:
    """Give this body trainable copies of the parameters whose names are chosen; what they shared stays untouched.

    A parameter with two names (a tied head) stays one if both are chosen, and is untied if one of them is.
    """
    copies: dict[int, nn.Parameter] = {}
    for name, parameter in list(decoder.named_parameters(remove_duplicate=False)):
        if not chosen(name):
            continue
        owner, _, last = name.rpartition(".")
        trained = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
        setattr(decoder.get_submodule(owner), last, trained)


def summary(model: nn.Module) -> str:
    """A table of a decoder's or a method's parameters: layer, shape, count, trainable share and bytes.

    Layers of the same name in every block are one line, times their number; a tied head is counted as the embedding.
    """
    groups: dict[tuple[str, ...], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        role = ".".join("*" if part.isdigit() else part for part in name.removeprefix("decoder.").split("."))
        shape = " x ".join(map(str, parameter.shape))
        groups.setdefault((role, shape, str(parameter.dtype).removeprefix("torch.")), []).append(parameter)
    rows = [("layer", "shape", "dtype", "layers", "parameters", "trainable", "bytes")]
    rows += [(*what, str(len(some)), *_counted(some)) for what, some in groups.items()]
    rows.append(("total", "", "", "", *_counted(list(model.parameters()))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _counted(parameters: list[nn.Parameter]) -> tuple[str, str, str]:
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return f"{count:,}", f"{trained / count:.2%}", f"{size:,}"
