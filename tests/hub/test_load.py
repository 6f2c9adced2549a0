"""What `minillm.load` accepts, and what it says of everything else."""

import shutil
import subprocess
import sys

import pytest
import torch

import minillm
from minillm import DecoderConfig, InputError, hub
from minillm.hub import pull as pulling

from .gguf_writing import llama_config, random_decoder, write_llama


def test_an_unknown_model_is_told_what_would_do():
    with pytest.raises(InputError) as refusal:
        minillm.load("smollm3")
    said = str(refusal.value)
    assert all(words in said for words in ("'smollm3'", "smollm2-135m-instruct", "directory", ".gguf", "hf:NAME"))
    assert "reviews" not in said


def test_a_pulled_name_is_pulled(tmp_path, monkeypatch):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    monkeypatch.setattr(pulling, "pull", lambda name: {"smollm2-135m-instruct": path}[name])
    decoder, _ = minillm.load("smollm2-135m-instruct")
    assert decoder.config == llama_config()


def test_paths_may_be_texts_or_paths_and_start_at_home(tmp_path, monkeypatch):
    write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for source in (tmp_path / "a.gguf", str(tmp_path / "a.gguf"), "~/a.gguf"):
        assert minillm.load(source)[0].config == llama_config()


def test_the_hub_is_reached_through_its_own_library(tmp_path, monkeypatch):
    minillm.save(random_decoder(DecoderConfig.tiny()), None, tmp_path)
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    decoder, _ = minillm.load("hf:someone/model")
    assert decoder.config == DecoderConfig.tiny()
    assert asked[0][0] == "someone/model"
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked[0][1])


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    def unreachable(*arguments, **settings):
        raise ConnectionError("Cannot reach the hub: offline mode is on.\nSee the documentation.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"hf:someone/model cannot be fetched.*offline mode is on") as refusal:
        minillm.load("hf:someone/model")
    assert "\n" not in str(refusal.value)


def test_a_missing_hub_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        minillm.load("hf:someone/model")


def test_loading_draws_no_random_numbers(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    before = torch.random.get_rng_state()
    minillm.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_importing_load_brings_only_the_tokenizer_and_the_notation_of_shapes_beyond_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import minillm; minillm.load; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    found = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert found <= {"minillm", "tokenizers", "jaxtyping", "einops", "numpy"}


def test_loading_needs_neither_transformers_nor_a_pickle(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    program = (
        f"import sys, minillm; d, _ = minillm.load({str(path)!r}); minillm.save(d, None, {str(tmp_path / 'd')!r}); "
        f"minillm.load({str(tmp_path / 'd')!r}); print([m for m in ('transformers', 'peft') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_the_base_tiny_comes_with_the_package_and_is_the_pinned_one(monkeypatch, tmp_path):
    decoder, tokenizer = minillm.load("tiny")
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 826_880
    assert sum(path.stat().st_size for path in hub.TINY.iterdir()) < 2_000_000
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode(" Half of 12 are golf: 6.")) == " Half of 12 are golf: 6."
    assert not (hub.TINY / ".fingerprints.json").exists()
    copy = tmp_path / "tiny"
    shutil.copytree(hub.TINY, copy)
    monkeypatch.setattr(hub, "TINY", copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="missing or damaged"):
        minillm.load("tiny")
