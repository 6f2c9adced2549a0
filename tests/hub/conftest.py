"""SmolLM2, downloaded once for all tests that need it, and transformers' Llama in float64."""

import pytest
import torch
from transformers.models.llama import modeling_llama

import minillm
from minillm.errors import InputError
from minillm.hub.pull import pull


@pytest.fixture(scope="session")
def smollm2_path():
    try:
        return pull("smollm2-135m-instruct")
    except InputError as problem:
        if "cannot be downloaded" in str(problem):
            pytest.skip(str(problem))
        raise


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    return minillm.load(smollm2_path)


@pytest.fixture
def exact_llama(monkeypatch):
    """transformers' RMSNorm and rotary tables, computed in float64 instead of float32."""

    def norm(self, hidden):
        return self.weight * hidden * (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def tables(self, hidden, position_ids):
        width = self.config.hidden_size // self.config.num_attention_heads
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.cat([position_ids[..., None] * frequencies] * 2, -1)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", tables)
