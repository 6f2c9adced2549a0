"""A model of transformers, the same decoder in minillm, and adapters for both."""

import warnings

import torch
from peft import PeftModel, get_peft_model

import minillm
from minillm.adapt import LoRA, PiSSA, PrefixTuning, SoftPrompt

from .huggingface_writing import gpt2, llama

IDS = torch.randint(61, (3, 11), generator=torch.Generator().manual_seed(0))
BASES = {
    "Llama": lambda: llama(tie_word_embeddings=False),
    "Llama, tied": lambda: llama(num_hidden_layers=3, num_key_value_heads=1, tie_word_embeddings=True),
    "GPT-2": lambda: gpt2(n_positions=64),
}
OURS = {
    "LoRA": lambda base: LoRA(base, r=2, alpha=4),
    "LoRA, everywhere": lambda base: LoRA(base, 3, 7, ("all-linear", "embed", "head"), dropout=0.25),
    "LoRA, of many ranks": lambda base: LoRA(
        base, 2, 3, ("query", "down", "blocks.0.*"), ranks={"down": 5, "blocks.1.attention.query": 1},
        alphas={"down": 2.5, "blocks.1.attention.query": 1.5}, rank_stabilised=True,
    ),
    "LoRA, one matrix": lambda base: LoRA(base, 1, 1, ("blocks.1.attention.out",)),
    "LoRA, of the fused": lambda base: LoRA(base, 3, 1, ("query", "key", "value")),
    "PiSSA": lambda base: PiSSA(base, r=2, alpha=4, targets=("query", "up")),
    "prefix": lambda base: PrefixTuning(base, 5),
    "prefix by an MLP": lambda base: PrefixTuning(base, 3, hidden=7),
    "soft prompt": lambda base: SoftPrompt(base, 5),
}  # fmt: skip
THEIRS = [
    ("Llama", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}),
    ("Llama", {"r": 4, "target_modules": ["q_proj", "o_proj", "down_proj", "embed_tokens", "lm_head"]}),
    ("Llama", {
        "r": 4, "lora_alpha": 6, "use_rslora": True, "lora_dropout": 0.5, "target_modules": ["q_proj", "gate_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "gate_proj": 3}, "alpha_pattern": {"q_proj": 5},
    }),
    ("Llama", {"r": 4, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]}),
    ("Llama", {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    ("GPT-2", {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn"]}),
    ("GPT-2", {"r": 4, "target_modules": ["c_attn", "attn.c_proj", "mlp.c_proj", "c_fc", "wte", "wpe"]}),
]  # fmt: skip


def base_pair(name, tmp_path):
    torch.manual_seed(0)
    model = BASES[name]().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    model.save_pretrained(tmp_path / "base")
    return model, minillm.load(tmp_path / "base")[0]


@torch.no_grad()
def moved(parameters):
    """Add noise, so that no parameter is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def ours(name, base):
    torch.manual_seed(0)
    method = OURS[name](base).eval()
    moved(method.trainable().values())
    return method


def by_peft(model, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, directory).eval()


def from_peft(model, config, directory):
    """An adapter with random weights, saved by peft."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config).eval()
        moved(parameter for parameter in adapted.parameters() if parameter.requires_grad)
        adapted.save_pretrained(directory)
    return adapted


@torch.no_grad()
def difference(method, oracle, base, ids=IDS):
    """The relative difference of the logits; checks that the adapter changes them."""
    expected = oracle(ids).logits[:, -ids.shape[1] :]
    assert (method(ids) - base(ids)).abs().max() > 1e-2 * expected.abs().max()
    return ((method(ids) - expected).abs().max() / expected.abs().max()).item()


def same_bits(left, right):
    left, right = left.state(), right.state()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
