"""The operations that the benchmark of the kernels times, at the sizes of real models, with their cost and peers.

A cost is the least that a pass needs, in the unit that bounds it. FLOPs: two per multiply-add, none for masked scores,
and scores that the backward pass recomputes count, as is usual. Bytes: every input is read once and every output
written once. This module does not know which operations have a kernel.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm import operations
from minillm.operations import Prefix

FLOP, BYTE = "FLOP", "B"
LIGER = find_spec("liger_kernel") is not None

Run = Callable[..., Any]


class Draw:
    """Draws inputs from a normal distribution on a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0):
        self.place = {"device": device, "dtype": dtype}
        # Tensors on torch's meta device have shapes but no data.
        self.generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, spread: float = 1.0, frozen: bool = False) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, **self.place) * spread
        return drawn if frozen else drawn.requires_grad_()

    def below(self, end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=self.generator, device=self.place["device"])


@dataclass(frozen=True)
class Work:
    """An operation at one size: its arguments, and the cost of its forward and of its backward pass.

    `peers` compute the same result from the same arguments; `yardsticks` compute a part of it, a lower bound.
    """

    operation: str
    about: str
    arguments: Callable[[Draw], dict[str, Any]]
    unit: str
    cost: tuple[int, int]
    dtype: torch.dtype = torch.bfloat16
    peers: Mapping[str, Run] = field(default_factory=dict)
    yardsticks: Mapping[str, Run] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.operation}, {self.about}, {str(self.dtype).removeprefix('torch.')}"

    def run(self, **arguments: Any) -> Any:
        return getattr(operations, self.operation)(**arguments)


def works() -> list[Work]:
    """All works, the most important first."""
    return [
        *(lora_work(8192, width, 16) for width in (4096, 768)),
        *(attention_work(8, 16, 16, 64, tokens, prompt) for tokens in (1024, 2048) for prompt in (64, 0)),
        loss_work(8192, 4096, 131_072),
        *(norm_work(name, 8192, 4096) for name in NORMS),
        *(norm_work(name, rows, width) for name in NORMS for rows, width in ((64, 4096), (16_384, 768), (64, 768))),
        *(attention_work(4, 32, 8, 128, tokens, prompt) for tokens in (512, 2048) for prompt in (20, 0)),
        *(loss_work(rows, 768, 50_257) for rows in (512, 8192)),
        *(lora_work(512, width, 16) for width in (4096, 768)),
        *(rows_work(8, tokens, 4096, 16, 4) for tokens in (1024, 1)),
        *(activation_work(name, rows, 11_008) for name in ("gelu", "swiglu") for rows in (64, 8192)),
        *(rotary_work(8, heads, tokens, 128) for heads, tokens in ((32, 2048), (8, 2048), (32, 16))),
        *(norm_work(name, 8192, 4096, torch.float32) for name in NORMS),
        attention_work(2, 16, 16, 64, 1024, 64, torch.float32),
        loss_work(1024, 768, 50_257, torch.float32),
    ]


NORMS = ("layer_norm", "rms_norm")


def norm_work(name: str, rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    layer = name == "layer_norm"

    def arguments(draw: Draw) -> dict[str, Any]:
        bias = {"bias": draw(width)} if layer else {}
        return {"hidden": draw(rows, width), "weight": draw(width), **bias, "eps": 1e-5}

    peers: dict[str, Run] = {}
    if name == "rms_norm":
        peers["F.rms_norm"] = lambda hidden, weight, eps: F.rms_norm(hidden, weight.shape, weight, eps)
        # In place it would overwrite the output gradients of the next round.
        peers |= _liger("liger_rms_norm", lambda hidden, weight, eps: (hidden, weight, eps), in_place=False)
    else:
        peers |= _liger("liger_layer_norm", lambda hidden, weight, bias, eps: (hidden, weight, bias, eps))
    numbers, vector = rows * width * dtype.itemsize, width * dtype.itemsize
    forward, backward = 2 * numbers + (1 + layer) * vector, 3 * numbers + (2 + layer) * vector
    return Work(name, f"{rows} x {width}", arguments, BYTE, (forward, backward), dtype, peers)


def attention_work(
    batch: int, heads: int, kv_heads: int, width: int, tokens: int, prompt: int, dtype: torch.dtype = torch.bfloat16
) -> Work:
    def arguments(draw: Draw) -> dict[str, Any]:
        sides = [draw(batch, kv_heads, tokens, width) for _ in range(2)]
        prefix = Prefix(*(draw(1, kv_heads, prompt, width) for _ in range(2))) if prompt else None
        return {"query": draw(batch, heads, tokens, width), "key": sides[0], "value": sides[1], "prefix": prefix}

    def without(query: Tensor, key: Tensor, value: Tensor, prefix: Prefix) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads)

    shared = f" of {kv_heads}" if heads != kv_heads else ""
    about = f"batch {batch}, {heads} heads{shared} of {width}, {tokens} tokens" + f" after {prompt}" * bool(prompt)
    forward = 4 * batch * heads * width * (tokens * (tokens + 1) // 2 + tokens * prompt)
    yardsticks: dict[str, Run] = {"SDPA, no prefix": without} if prompt else {}
    return Work(
        "attention", about, arguments, FLOP, (forward, forward * 5 // 2), dtype, yardsticks=yardsticks
    )  # fmt: skip


def lora_work(tokens: int, width: int, rank: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    def arguments(draw: Draw) -> dict[str, Any]:
        spread = 1 / math.sqrt(width)
        weight = draw(width, width, spread=spread, frozen=True)
        factors = {"a": draw(rank, width, spread=spread), "b": draw(width, rank, spread=spread)}
        return {"x": draw(tokens, width), "weight": weight, "bias": None, **factors, "scale": 2.0}

    def plainly(x: Tensor, weight: Tensor, bias: None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return F.linear(x, weight) + scale * F.linear(F.linear(x, a), b)

    def frozen(x: Tensor, weight: Tensor, **_: Any) -> Tensor:
        return F.linear(x, weight)

    product, update = 2 * tokens * width**2, 2 * tokens * rank * 2 * width
    return Work(
        "lora", f"{tokens} x {width}, rank {rank}", arguments, FLOP, (product + update, product + 2 * update),
        dtype, {"as it is written": plainly}, {"the frozen Linear": frozen},
    )  # fmt: skip


def rows_work(
    batch: int, tokens: int, width: int, rank: int, adapters: int, dtype: torch.dtype = torch.bfloat16
) -> Work:
    """LoRA with an adapter for each row of a batch."""

    def arguments(draw: Draw) -> dict[str, Any]:
        spread = 1 / math.sqrt(width)
        weight = draw(width, width, spread=spread, frozen=True)
        factors = {"a": draw(adapters, rank, width, spread=spread), "b": draw(adapters, width, rank, spread=spread)}
        of_row = draw.below(adapters, batch)
        return {"x": draw(batch, tokens, width), "weight": weight, "bias": None, **factors, "adapter": of_row}

    def plainly(x: Tensor, weight: Tensor, bias: None, a: Tensor, b: Tensor, adapter: Tensor) -> Tensor:
        return F.linear(x, weight) + x @ a[adapter].mT @ b[adapter].mT

    def frozen(x: Tensor, weight: Tensor, **_: Any) -> Tensor:
        return F.linear(x, weight)

    product, update = 2 * batch * tokens * width**2, 2 * batch * tokens * rank * 2 * width
    return Work(
        "lora_by_row", f"{batch} x {tokens} x {width}, rank {rank}, {adapters} adapters", arguments, FLOP,
        (product + update, product + 2 * update), dtype, {"as it is written": plainly}, {"the frozen Linear": frozen},
    )  # fmt: skip


def loss_work(rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    def arguments(draw: Draw) -> dict[str, Any]:
        weight = draw(vocabulary, width, spread=1 / math.sqrt(width))
        return {"hidden": draw(rows, width), "weight": weight, "labels": draw.below(vocabulary, rows)}

    def whole(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")

    liger = _liger("liger_fused_linear_cross_entropy", lambda **a: tuple(a.values()), reduction="sum")
    product = 2 * rows * width * vocabulary
    return Work(
        "linear_cross_entropy", f"{rows} x {width}, {vocabulary} words", arguments, FLOP,
        (product, 2 * product), dtype, {"all logits at once": whole, **liger},
    )  # fmt: skip


def activation_work(name: str, rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    gated = name == "swiglu"

    def arguments(draw: Draw) -> dict[str, Any]:
        return ({"gate": draw(rows, width)} if gated else {}) | {"up": draw(rows, width)}

    peers = _liger("liger_swiglu", lambda gate, up: (gate, up)) if gated else {}
    numbers = rows * width * dtype.itemsize
    cost = (3 * numbers, 5 * numbers) if gated else (2 * numbers, 3 * numbers)
    return Work(name, f"{rows} x {width}", arguments, BYTE, cost, dtype, peers)


def rotary_work(batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Work:
    def arguments(draw: Draw) -> dict[str, Any]:
        angles = draw(batch, tokens, width // 2, frozen=True)
        return {"vectors": draw(batch, heads, tokens, width), "cos": angles.cos(), "sin": angles.sin()}

    about = f"batch {batch}, {heads} heads of {width}, {tokens} tokens"
    numbers = batch * tokens * width * dtype.itemsize * (2 * heads + 1)
    return Work("rotary", about, arguments, BYTE, (numbers, numbers), dtype)


def _liger(name: str, order: Callable[..., tuple], **settings: Any) -> dict[str, Run]:
    """Liger's function of that name, with its own order of arguments; nothing if Liger is not installed."""

    def run(**arguments: Any) -> Any:
        from liger_kernel.transformers import functional  # pyright: ignore[reportMissingImports]

        return getattr(functional, name)(*order(**arguments), **settings)

    return {"Liger": run} if LIGER else {}
