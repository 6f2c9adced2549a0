"""Random tiny models of transformers, and functions that change their saved directories."""

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

IDS = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(0))


def gpt2(**changes):
    sizes = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 44}
    return randomised(GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})))


def _relative(model, config):
    def make(**changes):
        sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        sizes |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        return randomised(model(config(**{**sizes, **changes})))

    make.__name__ = config.model_type
    return make


llama = _relative(LlamaForCausalLM, LlamaConfig)
mistral = _relative(MistralForCausalLM, MistralConfig)
qwen2 = _relative(Qwen2ForCausalLM, Qwen2Config)
qwen3 = _relative(Qwen3ForCausalLM, Qwen3Config)
smollm3 = _relative(SmolLM3ForCausalLM, SmolLM3Config)


def randomised(oracle):
    """The model in float64, with every parameter random, norms and biases too."""
    torch.manual_seed(0)
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return oracle.double().eval()


@contextmanager
def all_in_float64(oracle):
    """transformers computes norms and rotary tables in float32 whatever the dtype of the model: here in float64."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name in ("float", "float32"):
            patch.setattr(torch, name, torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for module in oracle.modules():
            if hasattr(module, "rotary_emb"):
                module.rotary_emb = type(module.rotary_emb)(oracle.config)
        yield


def difference(ours, theirs):
    with all_in_float64(theirs):
        expected = theirs(IDS).logits
    with torch.no_grad():
        return (ours(IDS) - expected).abs().max()


def edited(directory, **changes):
    """The directory with its config.json changed; None removes a setting."""
    settings = {**json.loads((directory / "config.json").read_text()), **changes}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return directory


def restored(directory, change):
    """The directory with its tensors changed in place by a function of the dictionary."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory
