"""Decoding: a decoder for steps of few tokens, whose time is that of reading the matrices, and of each call.

The matrices that multiply one input are one product. For one row they are copied to float16, half the bytes; norms,
rotations, attention, cache and residual stream stay in float32. More rows are multiplied in float32 as W xᵀ, padded to
a multiple of 16, and matrices in 4 bits (`quantised.py`) by torch's kernel for them, with inputs in bfloat16.

On two cores with AVX2 (torch 2.13), all products of SmolLM2's blocks take 42 ms for one row by `F.linear`, 16 ms in
float16 (bfloat16 is as fast, and rounds eight times as much) and 10 ms in 4 bits, for 2, 16 and 64 rows 76, 93 and 200
ms, and as W xᵀ 35, 60 and 136 ms. A step has 8 to 12 ms of other work, most of it the calls themselves.
"""

import copy
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.fast.attention import attention
from minillm.quantised import GROUP, Quantised, halves

FEW = 64
"""The most rows of a step: more, as of a prompt, run through the decoder's own blocks."""
LARGE = 1 << 26
"""Bytes of weights from which they are copied to float16: smaller ones fit into the cache of a CPU."""
FOUR_BITS = (
    hasattr(torch, "_weight_int4pack_mm_for_cpu")
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")  # other CPUs run it one number at a time
)


def prepare(decoder: Any) -> Any:
    """A decoder of the same weights, for decoding without gradients; the decoder itself where that is not supported.

    Its hidden states are not finite where a number exceeds float16 (65,504). It is kept while the decoder exists, and
    made again after a change of weights or modules.
    """
    modules, parameters = list(decoder.modules())[1:], list(decoder.parameters())
    if not _supported(decoder, modules, parameters):
        return decoder
    large = sum(parameter.nbytes for parameter in parameters) >= LARGE
    # Fused optimizers and `.data` change weights without a new version, but hardly without a new sum of a copied one.
    changeable = [parameter for parameter in parameters if large and not isinstance(parameter, Quantised)]
    sums = [float(parameter.detach().sum()) for parameter in changeable]
    state = modules, [(parameter.data_ptr(), parameter._version) for parameter in parameters], sums
    if decoder not in _prepared or _prepared[decoder][0] != state:
        _prepared[decoder] = state, _prepare(decoder, large)
    return _prepared[decoder][1]


_prepared = WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]]()


def _supported(decoder: Any, modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> bool:
    """Weights in float32 (or float64) on a CPU, whose changes torch counts; no hooks; evaluation mode."""
    wide = {parameter.dtype for parameter in parameters} in ({torch.float32}, {torch.float64})
    counted = all(parameter.device.type == "cpu" and not parameter.is_inference() for parameter in parameters)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (decoder, *modules))
    training = any(module.training for module in (decoder, *modules))
    return wide and counted and not hooked and not training and not torch.is_autocast_enabled("cpu")


def _prepare(decoder: Any, large: bool) -> nn.Module:
    narrow = large and decoder.embed.weight.dtype == torch.float32 and not half_is_slow()
    prepared = copy.copy(decoder)
    blocks = nn.ModuleList(DecodingBlock(block, narrow) for block in decoder.blocks)
    prepared._modules = {**decoder._modules, "blocks": blocks, "head": Products((decoder.head,), narrow)}
    return prepared.eval()


@cache
def half_is_slow() -> bool:
    """Whether this torch has no fast product of a row and a float16 matrix for this CPU: it is then 5 times as slow.

    One thread is timed: two would wait for each other on a busy machine.
    """
    times, threads = dict[torch.dtype, list[float]](), torch.get_num_threads()
    torch.set_num_threads(1)
    for dtype in (torch.float16, torch.float32):
        row, matrix = torch.ones(1, 1024, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        for _ in range(10):
            start = time.perf_counter()
            F.linear(row, matrix)
            times.setdefault(dtype, []).append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return min(times[torch.float16]) > 3 * min(times[torch.float32])


class Products(nn.Module):
    """The products of some Linears with one input, side by side."""

    def __init__(self, linears: Sequence[Any], narrow: bool):
        super().__init__()
        self.linears = tuple(linears)  # no modules of this one: torch finds those more slowly
        self.narrow = narrow and all(isinstance(one, nn.Linear) or hasattr(one, "merged") for one in linears)
        self.in_4_bits = all(isinstance(one, nn.Linear) and _in_4_bits(one.weight) for one in linears)

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor | None]:
        """The matrices in float16, with the updates of adapted ones, and their biases."""
        plain = [one.merged() if hasattr(one, "merged") else one for one in self.linears]
        bias = None if plain[0].bias is None else torch.cat([one.bias.detach() for one in plain])
        narrow = [one.weight.detach().half() for one in plain]
        return narrow[0] if len(narrow) == 1 else torch.cat(narrow), bias

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The matrices in the 4 bits of torch's kernel, whose numbers are zero + scale · (q - 8), and biases."""
        matrices = [one.weight.parts for one in self.linears]
        codes, scale, offset = map(torch.cat, zip(*matrices, strict=True))
        whole = halves(codes, torch.int32).flatten(1)
        scales = torch.stack((scale, offset + 8 * scale), -1).transpose(0, 1).to(torch.bfloat16, copy=True)
        bias = None if self.linears[0].bias is None else torch.cat([one.bias.detach() for one in self.linears])
        return torch._convert_weight_to_int4pack_for_cpu(whole, 1), scales.contiguous(), bias

    def forward(self, x: Tensor) -> Tensor:
        if self.in_4_bits:
            codes, scales, bias = self.codes
            out = torch._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]).bfloat16(), codes, GROUP, scales)
            out = out.view(*x.shape[:-1], -1).to(x.dtype)
            return out if bias is None else out + bias
        if not self.narrow or x.shape[:-1].numel() > 1:
            products = [_product(one, x) for one in self.linears]
            return products[0] if len(products) == 1 else torch.cat(products, -1)
        weight, bias = self.matrices
        out = F.linear(x.half(), weight).to(x.dtype)
        return out if bias is None else out + bias


def _product(linear: Any, x: Tensor) -> Tensor:
    if not isinstance(linear, nn.Linear):
        return linear(x)
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count > 4:
        rows = F.pad(rows, (0, 0, 0, -count % 16))
    blocks = linear.weight.blocks() if isinstance(linear.weight, Quantised) else (linear.weight,)
    products = [block @ rows.T for block in blocks]
    found = products[0] if len(products) == 1 else torch.cat(products)
    out = found.T[:count].view(*x.shape[:-1], -1)
    return out if linear.bias is None else out + linear.bias


def _in_4_bits(weight: Tensor) -> bool:
    """Whether torch has a kernel for the matrix."""
    return isinstance(weight, Quantised) and weight.offset is not None and len(weight) % 16 == 0 and FOUR_BITS


class DecodingBlock(nn.Module):
    """A block for few tokens; more run through the block itself."""

    def __init__(self, block: Any, narrow: bool):
        super().__init__()
        attention, feed_forward = block.attention, block.feed_forward
        self.kind, self.norm_first, self.window = feed_forward.kind, block.norm_first, attention.window
        self.head_width, self.groups = attention.head_width, len(attention.key.weight) // attention.head_width
        self.plain = (block,)  # in tuples, as above
        self.norms = _normed(block.attention_norm), _normed(block.feed_forward_norm)
        by_head = attention.query_norm, attention.key_norm
        self.head_norms = None if isinstance(attention.query_norm, nn.Identity) else tuple(map(_normed, by_head))
        inner = (feed_forward.gate, feed_forward.up) if self.kind == "swiglu" else (feed_forward.up,)
        linears = (attention.query, attention.key, attention.value), (attention.out,), inner, (feed_forward.down,)
        self.products = tuple(Products(each, narrow) for each in linears)

    def forward(self, hidden: Tensor, inputs: Any) -> Tensor:
        if hidden.shape[0] * hidden.shape[1] > FEW:
            return self.plain[0](hidden, inputs)
        attention_normed, feed_forward_normed = self.norms
        if self.norm_first:
            hidden = hidden + self.attention(attention_normed(hidden), inputs)
            return hidden + self.feed_forward(feed_forward_normed(hidden))
        hidden = attention_normed(hidden + self.attention(hidden, inputs))
        return feed_forward_normed(hidden + self.feed_forward(hidden))

    def attention(self, hidden: Tensor, inputs: Any) -> Tensor:
        rows, length, _ = hidden.shape
        query_key_value, out, _, _ = self.products
        by_head = query_key_value(hidden).view(rows, length, -1, self.head_width).transpose(1, 2)
        heads = by_head.shape[1] - 2 * self.groups
        turned, value = by_head[:, : -self.groups], by_head[:, -self.groups :]
        if self.head_norms is not None:
            parts = turned[:, :heads], turned[:, heads:]
            turned = torch.cat([normed(part) for normed, part in zip(self.head_norms, parts, strict=True)], 1)
        if inputs.rotation is not None:
            cos, sin = _both_halves(*inputs.rotation)
            turned = torch.addcmul(turned * cos, turned.roll(self.head_width // 2, -1), sin)
        query, key = turned[:, :heads], turned[:, heads:]
        if inputs.cache is not None:
            key, value = inputs.cache.extend(key, value)
        mixed = attention(query, key, value, mask=inputs.mask, prefix=inputs.prefix, window=self.window)
        return out(mixed.transpose(1, 2).reshape(rows, length, -1))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        _, _, up, down = self.products
        inner = up(hidden)
        if self.kind == "swiglu":
            gate, inner = inner.chunk(2, -1)
            return down(F.silu(gate) * inner)
        return down(F.relu(inner) if self.kind == "relu" else F.gelu(inner, approximate="tanh"))


def _normed(norm: Any) -> Callable[[Tensor], Tensor]:
    """The norm as a function: torch finds the parameters of a module slowly."""
    weight, bias, eps = norm.weight.detach(), None if norm.bias is None else norm.bias.detach(), norm.eps
    width = len(weight)

    def normed(hidden: Tensor) -> Tensor:
        if bias is not None:
            return F.layer_norm(hidden, weight.shape, weight, bias, eps)
        if hidden.numel() > width:
            return F.rms_norm(hidden, weight.shape, weight, eps)
        row = hidden.flatten()  # its factor as a Python number takes a third of the time
        return hidden * (row.dot(row).item() / width + eps) ** -0.5 * weight

    return normed


@lru_cache(maxsize=1)  # the same for all layers of a step
def _both_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin): the rotation of `ops/positions.py` is x · cos + (second half, first half) · sin."""
    return torch.cat((cos, cos), -1).unsqueeze(-3), torch.cat((-sin, sin), -1).unsqueeze(-3)
