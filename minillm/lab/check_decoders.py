"""Whole decoders for `minillm check`: plain, and adapted at every seam that gradients pass, in torch and in numpy.

Weights are drawn so that they hide nothing: no bias is 0, no norm is 1, and no softmax saturates.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from minillm.adapt import LoRA, PrefixTuning, SoftPrompt
from minillm.adapt.low_rank import adapted_matrices
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.lab.check_operations import BATCH, PROMPT, RANK, TOKENS, padded
from minillm.lab.trust import Arrays, Case
from minillm.reference.decoder import decoder_backward, decoder_forward, keys_values_backward, keys_values_forward
from minillm.reference.tower import KeyValues

Twin = tuple[Callable[[Arrays], tuple[np.ndarray, Any]], Callable[[np.ndarray, Any], Arrays]]


def decoder_cases(config: DecoderConfig, random: np.random.Generator) -> Iterator[Case]:
    """The decoder of this config, plain and adapted; a second time with a smooth gelu if it has relu's kinks.

    Of so many units some are always within a step of relu's kink, where a difference is no slope. Relu itself is
    differentiated apart, by its own case.
    """
    yield from _cases(config, random)
    if config.feed_forward == "relu":
        yield from _cases(replace(config, feed_forward="gelu"), random)


def _cases(config: DecoderConfig, random: np.random.Generator) -> Iterator[Case]:
    """The decoder and, on padded rows, the decoder under LoRA, a prefix, a gated prefix and a soft prompt."""
    torch.manual_seed(int(random.integers(2**31)))
    decoder = Decoder(config).double().eval()
    _draw(decoder)
    methods: dict[str, nn.Module] = {
        "decoder with LoRA": LoRA(decoder, r=RANK, alpha=0.3 * RANK, targets="all-linear"),
        "decoder with a prefix": PrefixTuning(decoder, PROMPT),
        "decoder with a gated prefix": PrefixTuning(decoder, PROMPT, gated=True),
        "decoder with a soft prompt": SoftPrompt(decoder, PROMPT),
    }
    for method in methods.values():
        _draw(method)
    text = {"ids": random.integers(0, config.vocabulary, (BATCH, TOKENS))}
    yield _case("decoder", decoder, text)
    text["mask"] = padded(BATCH, TOKENS)
    yield _case("decoder", decoder, text)
    for what, method in methods.items():
        yield _case(what, method.eval(), text)


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Draw what is trained: a matrix by its width, and any other number about 0, or for a norm's gain about 1."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 and "embed" not in name else 0.3
            parameter.copy_(around + spread * torch.randn_like(parameter))


def _case(what: str, model: Any, text: Arrays) -> Case:
    parameters = {name.removeprefix("decoder."): parameter for name, parameter in model.named_parameters()}
    arrays = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    forward, backward = _twin(model)

    def gradients(dout: np.ndarray, cache: Any) -> Arrays:
        slopes = backward(dout, cache)
        return {name: slopes[name] for name in trained}

    has_kinks = model.config.feed_forward == "relu"
    return Case(what, {**arrays, **text}, forward, gradients, partial(_run, model), kinks=has_kinks)


def _run(model: nn.Module, inputs: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    parameters = {name: inputs[name.removeprefix("decoder.")] for name in names}
    return functional_call(model, parameters, (inputs["ids"],), {"mask": inputs.get("mask")})


def _twin(model: Any) -> Twin:
    """What numpy computes for this model: forward, and the gradients by parameter."""
    if isinstance(model, PrefixTuning):
        return partial(_prefix_forward, model.config, model.shift_positions), _prefix_backward
    if isinstance(model, SoftPrompt):
        return partial(_prompt_forward, model.config), _prompt_backward
    scales = (
        {f"{path}.scale": matrix.scale for path, matrix in adapted_matrices(model.decoder).items()}
        if isinstance(model, LoRA)
        else {}
    )
    return partial(_plain_forward, model.config, scales), _plain_backward


def _weights(inputs: Arrays) -> Arrays:
    return {name: array for name, array in inputs.items() if "." in name}


def _plain_forward(config: DecoderConfig, scales: dict[str, float], inputs: Arrays) -> tuple[np.ndarray, Any]:
    return decoder_forward({**_weights(inputs), **scales}, config, inputs["ids"], mask=inputs.get("mask"))


def _plain_backward(dout: np.ndarray, cache: Any) -> Arrays:
    return decoder_backward(dout, cache)["weights"]


def _prefix_forward(config: DecoderConfig, shifts: bool, inputs: Arrays) -> tuple[np.ndarray, Any]:
    prefix = KeyValues(inputs["keys"][:, None], inputs["values"][:, None], inputs.get("gate"), shifts)
    return decoder_forward(_weights(inputs), config, inputs["ids"], mask=inputs.get("mask"), prefix=prefix)


def _prefix_backward(dout: np.ndarray, cache: Any) -> Arrays:
    slopes = decoder_backward(dout, cache)["prefix"]
    return {"keys": slopes.keys[:, 0], "values": slopes.values[:, 0], "gate": slopes.gate}


def _prompt_forward(config: DecoderConfig, inputs: Arrays) -> tuple[np.ndarray, Any]:
    weights = _weights(inputs)
    prefix, left_behind = keys_values_forward(weights, config, inputs["prompt"][None])
    out, cache = decoder_forward(weights, config, inputs["ids"], mask=inputs.get("mask"), prefix=prefix)
    return out, (left_behind, cache)


def _prompt_backward(dout: np.ndarray, cache: Any) -> Arrays:
    left_behind, through = cache
    slopes = decoder_backward(dout, through)["prefix"]
    return {"prompt": keys_values_backward(slopes, left_behind)["embeddings"][0]}
