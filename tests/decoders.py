"""Small decoders with random weights: biases that are not 0, norms that are not 1, matrices that are not tiny."""

import torch

from minillm.config import DecoderConfig, RopeScaling
from minillm.decoder import Decoder
from minillm.key_values import KeyValues

# No two axes have the same length, so that a wrong axis does not fit.
SIZES = {"vocabulary": 13, "layers": 2, "width": 30, "heads": 3, "kv_heads": 1, "feed_forward_width": 11}
SIZES |= {"context_length": 17}

FIGURE_1 = {"norm": "layer", "norm_first": False, "positions": "sinusoidal", "feed_forward": "relu", "bias": True}
GPT_2 = {"norm": "layer", "norm_first": True, "positions": "learned", "feed_forward": "gelu", "bias": True}
LLAMA = {"norm": "rms", "norm_first": True, "positions": "rotary", "feed_forward": "swiglu", "rope_theta": 100.0}
STYLES = {
    "figure 1": DecoderConfig(**SIZES | FIGURE_1 | {"kv_heads": 3}),
    "GPT-2": DecoderConfig(**SIZES | GPT_2 | {"kv_heads": 3}),
    "Llama": DecoderConfig(**SIZES | LLAMA),
    "Llama, untied": DecoderConfig(**SIZES | LLAMA | {"tie_embeddings": False}),
    "Qwen": DecoderConfig(
        **SIZES | LLAMA | {"attention_width": 42, "query_key_norm": True, "bias": "query_key_value"},
        rope_scaling=RopeScaling("yarn", 4.0, original_context=101, fast=7.0, attention_factor=1.14),
    ),
    "Mistral": DecoderConfig(
        **SIZES | LLAMA | {"window": 3, "bias": "feed_forward", "unrotated_layers": (0,)},
        rope_scaling=RopeScaling("llama3", 8.0, original_context=31),
    ),
}


def random_decoder(config, seed=0):
    """A decoder in float64, in evaluation mode."""
    decoder = Decoder(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return decoder


def random_prefix(config, length, rows=1, gated=False, seed=0):
    """Random keys and values in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (config.layers, rows, config.kv_heads, length, config.head_width)
    keys, values = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    gate = torch.randn(config.layers, config.heads, generator=generator, dtype=torch.float64) if gated else None
    return KeyValues(keys, values, gate)


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
