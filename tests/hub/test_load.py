"""The sources that `minillm.load` accepts, and its errors for all others."""

import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

import minillm
from minillm import DecoderConfig, InputError, hub
from minillm.hub import pull as pulling

from .gguf_writing import llama_config, random_decoder, write_llama


def test_the_error_for_an_unknown_model_lists_the_sources():
    with pytest.raises(InputError) as refusal:
        minillm.load("smollm3")
    message = str(refusal.value)
    assert all(words in message for words in ("'smollm3'", "smollm2-135m-instruct", "directory", ".gguf", "hf:NAME"))
    assert "reviews" not in message


def test_a_name_of_pull_is_downloaded(tmp_path, monkeypatch):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    monkeypatch.setattr(pulling, "pull", lambda name: {"smollm2-135m-instruct": path}[name])
    decoder, _ = minillm.load("smollm2-135m-instruct")
    assert decoder.config == llama_config()


def test_paths_may_be_strings_or_paths_and_begin_with_a_tilde(tmp_path, monkeypatch):
    write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for source in (tmp_path / "a.gguf", str(tmp_path / "a.gguf"), "~/a.gguf"):
        assert minillm.load(source)[0].config == llama_config()


def test_hub_models_are_downloaded_by_huggingface_hub_without_code_or_pickles(tmp_path, monkeypatch):
    minillm.save(random_decoder(DecoderConfig.tiny()), None, tmp_path)
    download = Mock(return_value=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert minillm.load("hf:someone/model")[0].config == DecoderConfig.tiny()
    assert download.call_args.args == ("someone/model",)
    patterns = download.call_args.kwargs["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in patterns)


def test_an_unreachable_hub_and_a_missing_library_are_one_sentence_each(monkeypatch):
    offline = ConnectionError("Cannot reach the hub: offline mode is on.\nSee the documentation.")
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=offline))
    with pytest.raises(InputError, match=r"hf:someone/model cannot be downloaded.*offline mode is on") as refusal:
        minillm.load("hf:someone/model")
    assert "\n" not in str(refusal.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        minillm.load("hf:someone/model")


def test_loading_draws_no_random_numbers(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    before = torch.random.get_rng_state()
    minillm.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_importing_load_imports_few_packages_besides_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import minillm; minillm.load; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    found = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert found <= {"minillm", "tokenizers", "safetensors", "jaxtyping", "einops", "numpy"}


def test_loading_imports_neither_transformers_nor_peft(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    program = (
        f"import sys, minillm; d, _ = minillm.load({str(path)!r}); minillm.save(d, None, {str(tmp_path / 'd')!r}); "
        f"minillm.load({str(tmp_path / 'd')!r}); print([m for m in ('transformers', 'peft') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_the_base_tiny_is_in_the_package_with_the_pinned_weights(monkeypatch, tmp_path):
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
