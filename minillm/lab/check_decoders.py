"""Cases with whole decoders for `minillm check`: plain, adapted, merged, saved, and cached.

The random weights hide no error: no bias is 0, no norm is 1, and no softmax saturates.
"""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from minillm.adapt import LoRA, PrefixTuning, SoftPrompt
from minillm.adapt.low_rank import adapted_matrices
from minillm.adapters.load import load
from minillm.adapters.merge import merge
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.generation import GrowingLayer
from minillm.lab.check_operations import BATCH, PROMPT, RANK, TOKENS, packed, padded
from minillm.lab.trust import Arrays, Case
from minillm.reference.decoder import decoder_backward, decoder_forward, keys_values_backward, keys_values_forward
from minillm.reference.tower import KeyValues

Logits = Callable[[Any, Tensor, Tensor | None], Tensor]


def decoder_cases(config: DecoderConfig, random: np.random.Generator) -> Iterator[Case]:
    """The decoder of this config, plain and adapted; for relu a second time with gelu.

    Some of its many units are always so close to the kink of relu that difference quotients are wrong. Relu itself is
    checked in a case of its own.
    """
    yield from _cases(config, random)
    if config.feed_forward == "relu":
        yield from _cases(replace(config, feed_forward="gelu"), random)


def _cases(config: DecoderConfig, random: np.random.Generator) -> Iterator[Case]:
    """The decoder, the decoder with each method on padded rows, and the merged, saved and cached ones."""
    torch.manual_seed(int(random.integers(2**31)))
    decoder = Decoder(config).double().eval()
    _draw(decoder)
    lora = LoRA(decoder, r=RANK, alpha=0.3 * RANK, targets="all-linear")
    prefix, gated = PrefixTuning(decoder, PROMPT), PrefixTuning(decoder, PROMPT, gated=True)
    methods = {"LoRA": lora, "a prefix": prefix, "a gated prefix": gated, "a soft prompt": SoftPrompt(decoder, PROMPT)}
    for method in methods.values():
        _draw(method.eval())
    text: Arrays = {"ids": random.integers(0, config.vocabulary, (BATCH, TOKENS))}
    yield _case("decoder", decoder, text)
    yield _case("cached generation", prefix, text, _token_by_token)
    text["mask"] = padded(BATCH, TOKENS)
    yield _case("decoder", decoder, text)
    yield _case("decoder", decoder, text | {"mask": packed(text["mask"])})
    for name, method in methods.items():
        yield _case(f"decoder with {name}", method, text)
    yield _case("merged LoRA", lora, text, lambda method, ids, mask: merge(method)(ids, mask=mask))
    for name, method in methods.items():
        yield _case(f"saved {name.removeprefix('a ')}", method, text, _saved)


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Random values for the trained parameters: matrices scaled by their width, gains of norms around 1."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 and "embed" not in name else 0.3
            parameter.copy_(around + spread * torch.randn_like(parameter))


def _case(what: str, model: Any, text: Arrays, logits: Logits | None = None) -> Case:
    """The logits and gradients of a model, or the logits computed from it in another way."""
    parameters = {name.removeprefix("decoder."): parameter for name, parameter in model.named_parameters()}
    arrays = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
    trained, forward = [name for name, one in parameters.items() if one.requires_grad], partial(_forward, model)
    inputs, has_kinks = {**arrays, **text}, model.config.feed_forward == "relu"
    if logits is None:
        return Case(what, inputs, forward, partial(_backward, trained), partial(_run, model), kinks=has_kinks)
    return Case(what, inputs, forward, None, partial(_run_copy, model, logits))


def _run(model: nn.Module, inputs: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    parameters = {name: inputs[name.removeprefix("decoder.")] for name in names}
    return functional_call(model, parameters, (inputs["ids"],), {"mask": inputs.get("mask")})


@torch.no_grad()
def _run_copy(
    model: nn.Module, logits: Logits, inputs: dict[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Run a copy of the model with these weights, where `functional_call` cannot be used."""
    own = copy.deepcopy(model).to(device, dtype)
    for name, parameter in own.named_parameters():
        parameter.copy_(inputs[name.removeprefix("decoder.")])
    return logits(own, inputs["ids"], inputs.get("mask"))


def _token_by_token(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """All logits, computed with a cache, one token at a time after the first two."""
    decoder, prefix = model.decoder, model.prefix()
    cache = [GrowingLayer(ids.shape[1]) for _ in range(decoder.config.layers)]
    parts = [ids[:, :2], *ids[:, 2:].split(1, 1)]
    return torch.cat([decoder.head(decoder.features(part, prefix=prefix, cache=cache)) for part in parts], 1)


def _saved(method: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Save the method, load it onto a fresh base, and run it."""
    base = Decoder(method.config).to(ids.device, method.decoder.embed.weight.dtype).eval()
    base.load_state_dict({name: method.base[name] for name in base.state_dict()})
    base.source, method.base = method.decoder.source, dict(base.named_parameters(remove_duplicate=False))
    with TemporaryDirectory() as directory, redirect_stderr(io.StringIO()):
        method.save(directory)
        return load(base, directory)(ids, mask=mask)


def _forward(model: Any, inputs: Arrays) -> tuple[np.ndarray, Any]:
    """Numpy's logits of a model, whose prefix, if any, is of keys and values or of a prompt."""
    scales = {f"{path}.scale": matrix.scale for path, matrix in adapted_matrices(model.decoder).items()}
    weights = {name: array for name, array in inputs.items() if "." in name} | scales
    prefix = prompt = None
    if "keys" in inputs:
        keys, values = inputs["keys"][:, None], inputs["values"][:, None]
        prefix = KeyValues(keys, values, inputs.get("gate"), model.shift_positions)
    if "prompt" in inputs:
        prefix, prompt = keys_values_forward(weights, model.config, inputs["prompt"][None])
    out, cache = decoder_forward(weights, model.config, inputs["ids"], mask=inputs.get("mask"), prefix=prefix)
    return out, (cache, prompt)


def _backward(trained: list[str], dout: np.ndarray, caches: Any) -> Arrays:
    """Numpy's gradients of the trained inputs of `_forward`."""
    cache, prompt = caches
    gradients = decoder_backward(dout, cache)
    found, prefix = gradients["weights"], gradients.get("prefix")
    if prompt is not None:
        found["prompt"] = keys_values_backward(prefix, prompt)["embeddings"][0]
    elif prefix is not None:
        found |= {"keys": prefix.keys[:, 0], "values": prefix.values[:, 0], "gate": prefix.gate}
    return {name: found[name] for name in trained}
