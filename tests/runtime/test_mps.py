"""Every method and command on MPS, which has no float64 and not every operation: on a device that refuses the same."""

import pytest
import torch

from minillm import DecoderConfig, TextClassifier, adapt
from minillm.adapt import FineTune, LoRA
from minillm.adapt.low_rank import LowRank
from minillm.adapters.effect import effect, report
from minillm.adapters.extract import extract, resize
from minillm.classifier import NAMES
from minillm.generation import generate
from minillm.training.learners import TorchLearner
from minillm.training.pretraining import PackedRow, language_model_loss
from minillm.training.schedule import TrainingSettings
from minillm.training.tokenizers import byte_pairs
from tests.adapters.adapters import CASES, IDS
from tests.decoders import STYLES, random_decoder
from tests.fake_mps import MPS, FakeMPS

TEXTS, LABELS = [f"{number} {word}" for number in range(3) for word in ("good", "bad")], ["yes", "no"] * 3


def some(names, *default):
    """All names, of which the default run takes these."""
    assert {*default} <= {*names}
    return [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in names]


class OnAnyDevice(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls)


@pytest.fixture(autouse=True)
def mps(monkeypatch):
    monkeypatch.setattr(torch, "Generator", OnAnyDevice)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    with FakeMPS() as mode:
        yield mode


def base_on_mps(style="Llama"):
    return random_decoder(STYLES[style]).float().to(MPS)


@pytest.mark.parametrize(
    ("computed", "error", "message"),
    [
        (lambda x: x.double(), TypeError, "float64"),
        (lambda x: torch.zeros(2, dtype=torch.float64, device=MPS), TypeError, "float64"),
        (lambda x: torch.tensor([1.0, 2.0], dtype=torch.float64, device=MPS), TypeError, "float64"),
        (lambda x: x.copy_(torch.zeros(2, 2, dtype=torch.float64)), TypeError, "float64"),
        (lambda x: torch.linalg.svd(x), NotImplementedError, "_linalg_svd"),
        (lambda x: x + torch.ones(2), RuntimeError, "same device"),
    ],
)
def test_the_device_of_these_tests_refuses_what_mps_refuses(computed, error, message):
    x = torch.ones(2, 2).to(MPS)
    assert x.device == (x @ x + 1).device == MPS
    with pytest.raises(error, match=message):
        computed(x)


def trained(method, loss):
    """After two steps, the second with restored parameters and random numbers."""
    learner = TorchLearner(method.trainable(), loss, TrainingSettings())
    for _ in range(2):
        learner.backward([[1]])
        learner.optimizer_step(1e-2)
        learner.restore({name: tensor.cpu() for name, tensor in learner.state().items()})


@pytest.mark.parametrize("name", some(CASES, "LoRA", "DoRA", "soft prompt", "all weights"))
def test_every_method_is_trained_measured_saved_and_loaded_on_mps(name, tmp_path):
    base, ids = base_on_mps(), IDS.to(MPS)
    method = CASES[name](base)
    if isinstance(method, adapt.FrozenHead):
        method.fit(torch.randn(6, base.config.width), torch.arange(6) % 3)
    elif method.trainable():
        trained(method, lambda rows: (method(ids).square().sum(), 7))
    report(method.eval(), effect(method, base))
    method.save(tmp_path)
    loaded = adapt.load(base, tmp_path, allow_noop=True)
    assert torch.equal(loaded(ids).cpu(), method(ids).cpu())
    if isinstance(method, LowRank):
        adapt.merge(method)


@pytest.mark.parametrize("style", STYLES)
def test_generation_and_pretraining_run_on_mps_in_every_style(style):
    base, ids = base_on_mps(style), IDS.to(MPS)
    sampled = generate(base, ids, max_new_tokens=3, temperature=1.0, top_k=5, top_p=0.9, seed=1, stop=[0])
    assert sampled.device == MPS
    method, row = FineTune(base).train(), PackedRow([1, 2, 3, 4], [1, 2, 3, 4])
    method.decoder.recompute = True
    trained(method, lambda rows: language_model_loss(method.decoder, [row]))


@pytest.mark.parametrize("method", some(NAMES, "few-shot", "prefix", "last-blocks", "pissa"))
def test_a_classifier_is_fitted_and_used_on_mps(method):
    decoder = random_decoder(DecoderConfig.tiny(vocabulary=257, layers=1, context_length=256)).float().to(MPS)
    classifier = TextClassifier(
        base=(decoder, byte_pairs([], 257)), method=method, prompt="{text}:", r=2, layers=1, epochs=1, shots=2
    )
    assert len(classifier.fit(TEXTS, LABELS, validation=(TEXTS, LABELS)).predict_proba(TEXTS)) == len(TEXTS)


def test_a_low_rank_update_is_extracted_and_resized_on_mps():
    base = base_on_mps()
    lora = LoRA(base, r=2)
    with torch.no_grad():
        for parameter in lora.trainable().values():
            parameter += torch.ones_like(parameter)
    found = extract(base, lora, r=1)
    assert max(resize(found.lora, energy=1.0).errors.values()) < 1e-3
