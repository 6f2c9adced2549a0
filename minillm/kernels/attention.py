"""Masked multi-head attention that never stores the scores: flash attention (Dao et al. 2022; Dao 2023), with a prefix.

The T x S scores of a head are computed tile by tile and discarded. For each row the running maximum and the sum of
exponentials are kept; when the maximum grows, the sums so far are rescaled. The backward pass recomputes the weights
from log₂ Σ 2^score, one number per query, and their gradients from another, δ = Σ dout out:

    dV = Aᵀ dout        dZ = A (dout Vᵀ - δ)        dQ = dZ K / √K        dK = dZᵀ Q / √K

Cost of a head with K = 64 in bfloat16 and T = S = 2048, where a GPU can do about 200 FLOPs per byte:

    version                                                 bytes      FLOPs                   launches
    naive: product, scale, mask, softmax, product           68 M       4 T S K = 1.1 G         5
    fused, only the tiles that the causal mask shows         1 M       2 T S K = 0.5 G         1
    a prefix of P keys by `torch.cat`, and a mask            2 M + T S 4 T (P + S) K           3, and the mask's
    a prefix as a second segment, not copied                 1 M       2 T S K + 4 T P K       1
    backward, fused: scores computed twice, no atomics       3 M       7 T S K                 2, and 3 for a prefix

All query heads of a group form one stack of queries (`_attention_tiles.py`): keys are loaded once for the heads that
share them, and the gradient of a shared key is a sum within one program. A prefix that the rows of a batch share is
never copied for each row: its gradient is summed in stripes of their queries, and the stripes in a second stage.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from minillm.fast.attention import gated
from minillm.kernels._attention_backward import keys_kernel, queries_kernel
from minillm.kernels._attention_tiles import load, program_of, scores_of, store
from minillm.kernels._interpreter import EXACT, INTERPRETED
from minillm.ops.attention import Prefix

PROGRAMS = 512
"""About how many programs sum the gradient of a prefix: a few for each of the 100 or so processors of a GPU."""

# Rows of queries, keys, warps and stages: the largest that spill no registers, for any prefix, mask and groups.
TILES = {
    # output of the kernel, heads wider than 64, factors from shared memory
    ("out", False, False): (128, 64, 8, 3),
    ("out", False, True): (128, 128, 8, 2),
    ("out", True, False): (128, 32, 8, 2),
    ("out", True, True): (128, 64, 8, 3),
    ("queries", False, False): (64, 64, 8, 2),
    ("queries", False, True): (128, 64, 8, 2),
    ("queries", True, False): (64, 64, 8, 2),
    ("queries", True, True): (64, 64, 4, 2),
    ("keys", False, False): (64, 64, 8, 2),
    ("keys", False, True): (64, 128, 8, 2),
    ("keys", True, False): (32, 64, 8, 2),
    ("keys", True, True): (32, 64, 8, 2),
}


@triton.jit
def _attend(
    out, top, total, q, key, value, mask, b, g, whole, end, keys, last, scale,
    WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Output, maximum score and sum of exponentials of the queries, updated with the keys up to `end`."""
    for edge in tl.static_range(2):
        for first in range(whole * edge, end if edge else whole, BLOCK_S):
            k = load(key, b, g, first, keys, BLOCK_S, 1, WIDTH, BLOCK_K, edge)
            scores = scores_of(q, k, mask, b, first + tl.arange(0, BLOCK_S), keys, last, edge)
            higher = tl.maximum(top, tl.max(scores, 1) * scale)
            base = higher
            if mask is not None:  # a row may have seen only padding so far, and -∞ - -∞ is NaN
                base = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores * scale - base[:, None])
            rescale = tl.exp2(top - base)
            total = total * rescale + tl.sum(weights, 1)
            v = load(value, b, g, first, keys, BLOCK_S, 1, WIDTH, BLOCK_K, edge)
            out = tl.dot(weights.to(v.dtype), v, out * rescale[:, None], input_precision=EXACT)
            top = higher
    return out, top, total


@triton.jit
def _forward_kernel(
    query, key, value, mask, prefix_key, prefix_value, out, log_sum, groups, queries, keys, prompt, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    b, g, start, own, whole, end = program_of(groups, queries, keys, GROUP, BLOCK_T, BLOCK_S)
    rows = queries * GROUP
    q = load(query, b, g, start, rows, BLOCK_T, GROUP, WIDTH, BLOCK_K)
    acc = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    if prefix_key is not None:
        acc, top, total = _attend(
            acc, top, total, q, prefix_key, prefix_value, None, b, g, prompt // BLOCK_S * BLOCK_S, prompt,
            prompt, tl.full((BLOCK_T,), prompt - 1, tl.int32), scale, WIDTH, BLOCK_S, BLOCK_K,
        )  # fmt: skip
    acc, top, total = _attend(
        acc, top, total, q, key, value, mask, b, g, whole, end, keys, own, scale, WIDTH, BLOCK_S, BLOCK_K
    )  # fmt: skip
    store(out, b, g, start, rows, acc / total[:, None], BLOCK_T, GROUP, WIDTH, BLOCK_K)
    row = start + tl.arange(0, BLOCK_T)
    tl.store(log_sum + (b * groups + g).to(tl.int64) * rows + row, top + tl.log2(total), mask=row < rows)


def _blocks(kernel: str, rows: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles that fit in registers; float32 needs more of them, because it does not use tensor cores."""
    block = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:
        tile = (32, 32, 8, 2) if kernel == "queries" or block <= 64 else (16, 32, 8, 1)
    elif block > 128:
        tile = 64, 32, 8, 1
    else:
        tile = TILES[kernel, block > 64, _from_shared_memory()]
    most, keys, warps, stages = tile
    few = min(most, max(16, triton.next_power_of_2(rows)))
    return {"BLOCK_T": few, "BLOCK_S": keys, "BLOCK_K": block, "num_warps": warps, "num_stages": stages}


def _from_shared_memory() -> bool:
    """Whether tensor cores load factors from shared memory (Hopper), which leaves registers for larger tiles."""
    if INTERPRETED:
        return False
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def _sizes(query: Tensor, key: Tensor) -> dict[str, float]:
    """The sizes that all kernels need. Scores are exponents of 2, which GPUs compute directly: / √K and · log₂ e."""
    width = query.shape[3]
    return {"scale": math.log2(math.e) / math.sqrt(width), "GROUP": query.shape[1] // key.shape[1], "WIDTH": width}


def _side(tensor: Tensor | None, dtype: torch.dtype) -> tuple | None:
    """A tensor as the kernels take it. A single row is broadcast; a prefix is rounded to the dtype of the text."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
    return tensor, 0 if len(tensor) == 1 else tensor.stride(0), tensor.stride(1), tensor.stride(2)


def _like(tensor: Tensor) -> Tensor:
    """New memory in the order B T H K, that of the Linears before and after attention."""
    rows, heads, positions, width = tensor.shape
    return tensor.new_empty(rows, positions, heads, width).transpose(1, 2)


@torch.library.custom_op("minillm::attention", mutates_args=())
def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    prefix_key: Tensor | None, prefix_value: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, log₂ Σ 2^score of each row of the stacks)."""
    out, log_sum = _attention_fake(query, key)
    (batch, groups, keys), (queries, width) = key.shape[:3], query.shape[2:]
    prompt = 0 if prefix_key is None else prefix_key.shape[2]
    rows = log_sum.shape[2]
    blocks = _blocks("out", rows, width, query.dtype)
    if query.numel():
        _forward_kernel[(triton.cdiv(rows, blocks["BLOCK_T"]) * batch * groups,)](
            *(_side(side, query.dtype) for side in (query, key, value)), None if mask is None else mask.contiguous(),
            *(_side(side, query.dtype) for side in (prefix_key, prefix_value, out)), log_sum,
            groups, queries, keys, prompt, **_sizes(query, key), **blocks,
        )  # fmt: skip
    return out, log_sum


@_attention.register_fake
def _attention_fake(query: Tensor, key: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    (rows, heads, queries, _), groups = query.shape, key.shape[1]
    return _like(query), query.new_empty(rows, groups, heads // groups * queries, dtype=torch.float32)


@torch.library.custom_op("minillm::attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    prefix_key: Tensor | None, prefix_value: Tensor | None, out: Tensor, log_sum: Tensor, prefix_trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key, value, prefix key and prefix value; the last two are empty if not needed."""
    dquery, dkey, dvalue, *dprefix = _attention_backward_fake(
        dout, query, key, value, mask, prefix_key, prefix_value, out, log_sum, prefix_trained
    )
    if not query.numel():
        return dquery, dkey.zero_(), dvalue.zero_(), *(side.zero_() for side in dprefix)
    groups, keys, (queries, width) = *key.shape[1:3], query.shape[2:]
    prompt, rows = 0 if prefix_key is None else prefix_key.shape[2], log_sum.shape[2]
    blocks = _blocks("queries", rows, width, query.dtype)
    mask, delta = None if mask is None else mask.contiguous(), torch.empty_like(log_sum)
    sides = [_side(side, query.dtype) for side in (query, key, value, prefix_key, prefix_value, out, dout, dquery)]
    queries_kernel[(triton.cdiv(rows, blocks["BLOCK_T"]) * len(key) * groups,)](
        *sides[:3], mask, *sides[3:7], log_sum, delta, sides[7], groups, queries, keys, prompt,
        **_sizes(query, key), **blocks,
    )  # fmt: skip
    shared = query, dout, log_sum, delta
    _keys_gradients(key, value, mask, *shared, dkey, dvalue, 1)
    if prefix_trained:
        dprefix = _prefix_gradients(prefix_key, prefix_value, *shared)
    return dquery, dkey, dvalue, *dprefix


@_attention_backward.register_fake
def _attention_backward_fake(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    prefix_key: Tensor | None, prefix_value: Tensor | None, out: Tensor, log_sum: Tensor, prefix_trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sides = (prefix_key, prefix_value) if prefix_trained else (query.new_empty(0),) * 2
    dprefix = (side.new_empty(side.shape) for side in sides)
    return _like(query), _like(key), _like(value), *dprefix


def _keys_gradients(
    key: Tensor, value: Tensor, mask: Tensor | None, query: Tensor, dout: Tensor, log_sum: Tensor, delta: Tensor,
    dkey: Tensor, dvalue: Tensor, stripes: int, causal: bool = True,
) -> None:  # fmt: skip
    (owners, groups, keys, width), queries = key.shape, query.shape[2]
    blocks = _blocks("keys", log_sum.shape[2], width, query.dtype)
    programs = triton.cdiv(keys, blocks["BLOCK_S"]) * groups * owners * stripes
    if programs:
        keys_kernel[(programs,)](
            *(_side(side, query.dtype) for side in (query, key, value)), mask, _side(dout, query.dtype), log_sum, delta,
            *(_side(side, side.dtype) for side in (dkey, dvalue)), len(query) // owners, groups, queries, keys, stripes,
            CAUSAL=causal, **_sizes(query, key), **blocks,
        )  # fmt: skip


def _prefix_gradients(
    key: Tensor, value: Tensor, query: Tensor, dout: Tensor, log_sum: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed in float32 by stripe, and then over the stripes: enough of them to fill a GPU, and deterministic."""
    owners, groups, keys, width = key.shape
    blocks = _blocks("keys", log_sum.shape[2], width, query.dtype)
    tiles = len(query) // owners * triton.cdiv(log_sum.shape[2], blocks["BLOCK_T"])
    stripes = min(tiles, max(1, PROGRAMS // max(1, owners * groups * triton.cdiv(keys, blocks["BLOCK_S"]))))
    sums = [key.new_empty((owners * stripes, *key.shape[1:]), dtype=torch.float32) for _ in range(2)]
    _keys_gradients(key, value, None, query, dout, log_sum, delta, *sums, stripes, causal=False)
    dkey, dvalue = (side.unflatten(0, (owners, stripes)).sum(1) for side in sums)
    return dkey.to(key.dtype), dvalue.to(value.dtype)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, *_: Any):
    if dout is None:
        return (None,) * 6
    prefix_trained = any(ctx.needs_input_grad[4:])
    dquery, dkey, dvalue, *dprefix = _attention_backward(dout, *ctx.saved_tensors, prefix_trained)
    return dquery, dkey, dvalue, None, *(dprefix if prefix_trained else (None, None))


_attention.register_autograd(_differentiate, setup_context=_save)


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, prefix: Prefix | None = None
) -> Tensor:
    """Without dropout. Attention to a gated prefix is computed by torch."""
    if prefix is not None and prefix.gate is not None:
        return attention(query, key, value, mask=mask) + gated(prefix, query)
    key_side, value_side = (None, None) if prefix is None else (prefix.key, prefix.value)
    return _attention(query, key, value, mask, key_side, value_side)[0]
