"""The sizes and the architectural choices by which one decoder is figure 1, GPT-2, a Llama or a relative of it."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from minillm.errors import InputError, check_at_least

Norm = Literal["layer", "rms"]
Positions = Literal["sinusoidal", "learned", "rotary"]
FeedForward = Literal["relu", "gelu", "swiglu"]
Scaling = Literal["linear", "llama3", "yarn"]
BIASED: dict[Any, tuple[str, ...]] = {
    False: (), "query_key_value": ("query", "key", "value"), "attention": ("query", "key", "value", "out"),
    "feed_forward": ("gate", "up", "down"), True: ("query", "key", "value", "out", "gate", "up", "down"),
}  # fmt: skip
"""The linear layers of a block that have a bias, by the value of `bias`."""

# The choices of the decoder in figure 1, of GPT-2 and of the Llama family.
FIGURE_1_CHOICES: dict[str, Any] = {
    "norm": "layer", "norm_first": False, "positions": "sinusoidal", "feed_forward": "relu", "bias": True,
}  # fmt: skip
GPT2_CHOICES: dict[str, Any] = {
    "norm": "layer", "norm_first": True, "positions": "learned", "feed_forward": "gelu", "bias": True,
}  # fmt: skip
LLAMA_CHOICES: dict[str, Any] = {"norm": "rms", "norm_first": True, "positions": "rotary", "feed_forward": "swiglu"}

MOST = 2**31
"""All sizes are below it, so that products of two fit into 63 bits."""

# layers, width, heads: table 2 of Radford et al. 2019.
GPT2_SIZES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}

# vocabulary, layers, width, heads, kv_heads, feed_forward_width, context_length, rope_theta, tie_embeddings
LLAMA_SIZES = {
    "smollm2-135m": (49152, 30, 576, 9, 3, 1536, 8192, 100_000.0, True),
    "smollm2-360m": (49152, 32, 960, 15, 5, 2560, 8192, 100_000.0, True),
    "smollm2-1.7b": (49152, 24, 2048, 32, 32, 8192, 8192, 130_000.0, True),
    "llama-2-7b": (32000, 32, 4096, 32, 32, 11008, 4096, 10_000.0, False),
}

# Depths of decoders that are trained from scratch. The other sizes follow from the depth, as in Karpathy's nanochat.
WIDTH_PER_LAYER = 32
DEPTHS = {"nano": 2, "tiny": 4, "small": 8}


@dataclass(frozen=True)
class RopeScaling:
    """Lower frequencies of rotary positions, for a context longer than the one at the start of pretraining.

    `linear` divides all frequencies by `factor` (Chen et al. 2023). `llama3` (Llama 3.1) and `yarn` (Peng et al. 2023)
    divide those of pairs that turn at most `slow` times within `original_context` tokens, leave those of pairs that
    turn at least `fast` times, and interpolate between them. `attention_factor` multiplies queries and keys.
    Raises InputError for values out of range.
    """

    kind: Scaling
    factor: float
    original_context: int = 8192
    slow: float = 1.0
    fast: float = 4.0
    attention_factor: float = 1.0

    def __post_init__(self):
        if self.kind not in get_args(Scaling):
            raise InputError(f"the rotary scaling must be one of {', '.join(get_args(Scaling))}, got {self.kind!r}")
        for name in ("factor", "original_context", "attention_factor"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} of the rotary scaling must be positive, got {getattr(self, name)}")
        if not 0 < self.slow < self.fast:
            raise InputError(f"the rotary scaling needs 0 < slow < fast, got {self.slow} and {self.fast}")


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder: everything but its weights.

    The four choices of the papers come first. `norm_first` selects `hidden + layer(norm(hidden))`; without it a block
    computes `norm(hidden + layer(hidden))`, the add & norm of figure 1. `context_length` is in tokens, `dropout` a
    probability. `bias` is True or False for all linear layers of a block, or names those that have one (`BIASED`).

    The last fields tell the relatives of Llama apart: `attention_width`, of all query heads together, if it is not
    `width`; `query_key_norm`, a norm of each query and key head (Qwen3); `window`, the number of last tokens that a
    token attends to, itself included (Mistral); `unrotated_layers`, blocks without rotary positions (SmolLM3).
    Raises InputError for sizes that do not fit together.
    """

    norm: Norm
    norm_first: bool
    positions: Positions
    feed_forward: FeedForward
    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward_width: int
    context_length: int
    bias: bool | Literal["query_key_value", "attention", "feed_forward"] = False
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_width: int | None = None
    query_key_norm: bool = False
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    unrotated_layers: tuple[int, ...] = ()

    def __post_init__(self):
        for name, allowed in (("norm", Norm), ("positions", Positions), ("feed_forward", FeedForward)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        sizes = "vocabulary", "layers", "width", "heads", "kv_heads", "feed_forward_width", "context_length", "window"
        check_at_least(1, **{name: getattr(self, name) for name in sizes})
        for name in (*sizes, "attention_width"):
            if (getattr(self, name) or 0) >= MOST:
                raise InputError(f"{name} must be below 2^31, got {getattr(self, name)}")
        if self.bias not in BIASED:
            raise InputError(f"bias must be one of {', '.join(map(str, BIASED))}, got {self.bias!r}")
        name = "width" if self.attention_width is None else "attention_width"
        width = getattr(self, name)
        if width < 1 or width % self.heads:
            raise InputError(f"{name} must be a multiple of heads, got {width} and {self.heads}")
        if self.heads % self.kv_heads:
            raise InputError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if self.positions == "rotary" and self.head_width % 2:
            raise InputError(f"rotary positions need an even head width, got {name} / heads = {self.head_width}")
        if self.positions != "rotary" and (self.rope_scaling is not None or self.unrotated_layers):
            raise InputError(f"rope_scaling and unrotated_layers need rotary positions, got {self.positions}")
        if not all(0 <= layer < self.layers for layer in self.unrotated_layers):
            raise InputError(f"unrotated_layers must be in [0, {self.layers - 1}], got {self.unrotated_layers}")
        if self.positions == "sinusoidal" and self.width % 2:
            raise InputError(f"sinusoidal positions need an even width, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.norm_eps <= 0 or self.rope_theta <= 0:
            raise InputError(f"norm_eps and rope_theta must be positive, got {self.norm_eps} and {self.rope_theta}")

    @property
    def head_width(self) -> int:
        return (self.attention_width or self.width) // self.heads

    def has_bias(self, layer: str) -> bool:
        """Whether this linear layer of a block (`query`, `out`, `up`, ...) has a bias."""
        return layer in BIASED[self.bias]

    @classmethod
    def vaswani(cls) -> "DecoderConfig":
        """The decoder of figure 1 in the base size of the paper (Vaswani et al. 2017, section 3 and table 3)."""
        return cls(
            **FIGURE_1_CHOICES, vocabulary=37000, layers=6, width=512, heads=8, kv_heads=8, feed_forward_width=2048,
            context_length=1024, dropout=0.1,
        )  # fmt: skip

    @classmethod
    def gpt2(cls, size: str = "small") -> "DecoderConfig":
        """GPT-2 (Radford et al. 2019): small, medium, large or xl."""
        layers, width, heads = _size(GPT2_SIZES, size, "GPT-2")
        return cls(
            **GPT2_CHOICES, vocabulary=50257, layers=layers, width=width, heads=heads, kv_heads=heads,
            feed_forward_width=4 * width, context_length=1024, dropout=0.1,
        )  # fmt: skip

    @classmethod
    def llama(cls, size: str = "smollm2-135m") -> "DecoderConfig":
        """The Llama family (Touvron et al. 2023), which includes SmolLM2 (Ben Allal et al. 2025)."""
        vocabulary, layers, width, heads, kv_heads, inner, context, theta, tied = _size(LLAMA_SIZES, size, "Llama")
        return cls(
            **LLAMA_CHOICES, vocabulary=vocabulary, layers=layers, width=width, heads=heads, kv_heads=kv_heads,
            feed_forward_width=inner, context_length=context, rope_theta=theta, tie_embeddings=tied,
        )  # fmt: skip

    @classmethod
    def from_depth(cls, depth: int, vocabulary: int, context_length: int = 384) -> "DecoderConfig":
        """A Llama-style decoder to train from scratch: per layer a width of 32 and one head."""
        width = WIDTH_PER_LAYER * depth
        return cls(
            **LLAMA_CHOICES, vocabulary=vocabulary, layers=depth, width=width, heads=depth, kv_heads=depth,
            feed_forward_width=-(-8 * width // 24) * 8, context_length=context_length,
        )  # fmt: skip

    @classmethod
    def tiny(cls, **changes: Any) -> "DecoderConfig":
        """A small Llama-style decoder for tests; `changes` replace fields."""
        sizes = {"vocabulary": 61, "layers": 2, "width": 24, "heads": 4, "kv_heads": 2, "feed_forward_width": 40}
        return cls(**{**LLAMA_CHOICES, **sizes, "context_length": 64, **changes})


def _size(sizes: dict, size: str, family: str):
    if size not in sizes:
        raise InputError(f"the {family} size must be one of {', '.join(sizes)}, got {size!r}")
    return sizes[size]
