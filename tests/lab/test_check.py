"""`minillm check` checks every operation and decoder, passes right ones, and reports wrong ones by name."""

import json
import math
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minillm import Decoder, DecoderConfig, InputError, save
from minillm.adapt.lora import LoRA, LoRAMatrix
from minillm.cli import main
from minillm.decoder import Block
from minillm.generation import GrowingLayer
from minillm.lab.check import Check, check, failed, find_config, presets, shrunk, table
from minillm.lab.check_decoders import decoder_cases
from minillm.lab.check_operations import operation_cases
from minillm.operations import FAST, PLAIN, backend
from minillm.reference import norm as numpy_norm
from tests.strategies import OPERATIONS, implemented_in

TINY, HERE = Check(base="tiny", device="cpu"), "float32 on cpu"
METHODS = ("LoRA", "prefix", "gated prefix", "soft prompt")
MADE_OF_ADAPTERS = {"cached generation", "merged LoRA", *(f"saved {method}" for method in METHODS)}
MODELS = {"decoder", "decoder with LoRA", *(f"decoder with a {method}" for method in METHODS[1:])} | MADE_OF_ADAPTERS
WITHOUT_GRADIENT = {"token_positions", "visible_keys", "sinusoidal", "rotary_tables"} | MADE_OF_ADAPTERS


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "float64"))]
)
def test_every_operation_and_every_kind_of_decoder_passes_every_rung(dtype):
    described = check(Check(base="tiny", dtype=dtype, device="cpu"))
    assert {(row["what"], row["rung"]) for row in described["rows"]} == {
        (what, rung)
        for what in OPERATIONS.keys() | MODELS
        for rung in ("differences", "numpy", "fast", f"{dtype} on cpu")
        if rung != "differences" or what not in WITHOUT_GRADIENT
    }
    assert failed(described) == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ["gpt2", "vaswani", "smollm2-135m"])
def test_other_architectures_pass(config, monkeypatch):
    monkeypatch.setattr("minillm.lab.check.WIDTH", 128)
    monkeypatch.setattr("minillm.lab.check.VOCABULARY", 61)
    assert failed(check(Check(base=config, dtype="bfloat16", device="cpu", seed=1))) == []


@pytest.fixture
def operations_alone(monkeypatch):
    """Without decoders, which are slow and use every operation."""
    monkeypatch.setattr("minillm.lab.check.decoder_cases", lambda config, random: [])


def scaled(right):
    """The operation with a slightly too large result."""
    return lambda *args, **kwargs: right(*args, **kwargs) * (1 + 1e-4)


WRONG = {
    "ops.norm.rms_norm": lambda right: lambda hidden, weight, eps: right(hidden, weight, 0.0),
    "ops.norm.layer_norm": lambda right: lambda hidden, weight, bias, eps: right(hidden, weight, bias, 1e-5 + eps),
    "fast.norm.layer_norm": lambda right: lambda hidden, weight, bias, eps: right(hidden, weight, 0 * bias, eps),
    "ops.feed_forward.gelu": lambda right: F.gelu,
    "fast.feed_forward.gelu": lambda right: F.gelu,
    "ops.attention.attention": scaled,
    "fast.attention.attention": scaled,
    "ops.lora.lora": lambda right: lambda x, weight, bias, a, b, scale, dropped=None: F.linear(x, weight, bias),
    "fast.lora.lora": lambda right: lambda x, weight, bias, a, b, scale, dropped=None: F.linear(x, weight, bias),
    "operations.softmax": lambda right: lambda scores: torch.softmax(scores, 0),
    "operations.token_positions": lambda right: lambda mask, start: 1 + right(mask, start),
    "operations.visible_keys": lambda right: lambda queries, keys, mask, device: torch.ones(1, 1, queries, keys) > 0,
}


@pytest.mark.usefixtures("operations_alone")
@pytest.mark.parametrize("path", WRONG)
def test_only_a_wrong_operation_fails_and_only_on_its_rungs(path, monkeypatch):
    module, _, name = f"minillm.{path}".rpartition(".")
    monkeypatch.setattr(f"{module}.{name}", WRONG[path](getattr(import_module(module), name)))
    plain, fast = {"numpy"}, {"fast", HERE}
    expected = plain if path.startswith("ops.") and name in implemented_in("fast") else plain | fast
    wrong = failed(check(TINY))
    assert {row["what"] for row in wrong} == {name}
    assert {row["rung"] for row in wrong} - {"differences"} == (fast if path.startswith("fast.") else expected)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda up: F.gelu(up.half(), approximate="tanh").to(up.dtype) if up.dtype == torch.float32 else gelu(up),
        lambda up: gelu(up) / (0 if up.dtype == torch.float32 else 1),
        lambda up: gelu(up.detach()) if up.dtype == torch.float32 else gelu(up),
        lambda up: gelu(up @ up if up.dtype == torch.float32 else up),
    ],
    ids=["rounded inside", "infinite", "no gradient", "exception"],
)
@pytest.mark.usefixtures("operations_alone")
def test_an_error_in_one_dtype_is_found_there(wrong, monkeypatch):
    monkeypatch.setattr("minillm.fast.feed_forward.gelu", wrong)
    described = check(TINY)
    assert [(row["what"], row["rung"]) for row in failed(described)] == [("gelu", HERE)]
    json.loads(json.dumps(described, allow_nan=False))


def gelu(up):
    return F.gelu(up, approximate="tanh")


@pytest.mark.usefixtures("operations_alone")
def test_a_wrong_gradient_in_numpy_is_found_by_differences(monkeypatch):
    right = numpy_norm.rms_norm_backward

    def wrong(dout, cache):
        return right(dout, cache) | {"hidden": dout * cache[2] / cache[1]}

    monkeypatch.setattr(numpy_norm, "rms_norm_backward", wrong)
    rows = [row for row in failed(check(TINY)) if row["what"] == "rms_norm"]
    assert rows[0]["rung"] == "differences"
    assert rows[0]["part"] == "the gradient of hidden"


def forgetful(extend):
    def wrong(self, key, value):
        keys, values = extend(self, key, value)
        return keys, values.flip(2) if self.length > 2 else values

    return wrong


BROKEN = {
    "block": (Block, "forward", lambda right: lambda self, hidden, inputs: right(self, hidden, inputs) * (1 + 1e-8)),
    "sign of a merge": (LoRAMatrix, "change", lambda right: lambda self: -right(self)),
    "saved adapter": (LoRA, "state", lambda right: lambda self: {name: 1.001 * t for name, t in right(self).items()}),
    "cache": (GrowingLayer, "extend", forgetful),
}
FOUND = {
    "block": MODELS,
    "sign of a merge": {"merged LoRA"},
    "saved adapter": {"saved LoRA"},
    "cache": {"cached generation"},
}


@pytest.mark.slow
@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_part_of_the_decoder_is_found_where_it_is_used_and_nowhere_else(part, monkeypatch):
    # Operations do not use these parts, and central differences compare numpy with itself.
    monkeypatch.setattr("minillm.lab.check.operation_cases", lambda config, random: [])
    monkeypatch.setattr("minillm.lab.check.differences", lambda case, random: None)
    owner, name, wrong = BROKEN[part]
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    assert {row["what"] for row in failed(check(TINY))} == FOUND[part]


@pytest.mark.usefixtures("operations_alone")
def test_a_check_is_reproducible_by_its_seed():
    first, again, other = (check(Check(base="tiny", device="cpu", seed=seed))["rows"] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("name", presets())
def test_a_shrunk_config_keeps_the_architecture_and_the_heads(name):
    config = find_config(name)
    small = shrunk(config)
    for same in ("norm", "norm_first", "positions", "feed_forward", "bias", "tie_embeddings", "head_width", "norm_eps"):
        assert getattr(small, same) == getattr(config, same)
    assert small.heads // small.kv_heads == config.heads // config.kv_heads
    assert small.width <= 576
    assert small.layers == 2
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Decoder(small).parameters()) < 12e6


@pytest.mark.parametrize("heads", [(1, 1), (71, 1), (64, 64), (6, 2)])
def test_any_grouping_of_heads_can_be_shrunk(heads):
    for head_width in (1, 2, 64, 700):
        sizes = {"heads": heads[0], "kv_heads": heads[1], "width": heads[0] * head_width}
        for positions in ("rotary", "learned") if head_width % 2 == 0 else ("learned",):
            small = shrunk(DecoderConfig.tiny(**sizes, positions=positions))
            assert small.width <= max(576, head_width)
    assert shrunk(DecoderConfig.tiny(heads=6, kv_heads=6, width=6 * 287, positions="sinusoidal")).width % 2 == 0


def run(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["minillm", "check", "--device", "cpu", *words])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_prints_and_writes_the_table(tmp_path, monkeypatch, capsys):
    assert run(["--base", "tiny", "--out", str(tmp_path / "out")], monkeypatch) == 0
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "out" / "check.json").read_text())
    assert table(written) in printed
    assert "FAILED" not in printed
    assert written["config"] == "tiny"
    assert all(math.isfinite(row["error"]) and row["good"] for row in written["rows"])


@pytest.mark.usefixtures("operations_alone")
def test_the_command_names_wrong_operations_and_exits_with_1(monkeypatch, capsys):
    monkeypatch.setattr("minillm.operations.gelu", lambda up: up)
    assert run(["--base", "tiny"], monkeypatch) == 1
    printed = capsys.readouterr()
    assert printed.err.count("gelu") == 3, "numpy and torch disagree in both dtypes"
    assert "swiglu" not in printed.err
    assert printed.out.count("FAILED") == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--base", "bert"], "a preset: tiny, vaswani, gpt2"),
        (["--dtype", "float16"], "float16"),
        (["--threads", "0"], "threads"),
        (["--seed", "-1"], "seed"),
        (["--device", "tpu"], "unknown value for --device: 'tpu'"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(words, sentence, tmp_path, monkeypatch, capsys):
    assert run([*words, "--out", str(tmp_path / "out")], monkeypatch) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_config_of_a_saved_model_is_checked(tmp_path):
    config = DecoderConfig.tiny(heads=3, kv_heads=1, width=18, tie_embeddings=False)
    save(Decoder(config), None, tmp_path)
    assert find_config(str(tmp_path)) == config


def test_mps_has_no_float64(monkeypatch):
    monkeypatch.setattr("minillm.lab.check.pick_device", lambda name: torch.device("mps"))
    with pytest.raises(InputError, match="mps has no float64"):
        check(Check(base="tiny", dtype="float64", device="mps"))


@pytest.mark.parametrize("by", [PLAIN, FAST])
def test_everything_runs_on_the_given_device_in_the_given_dtype(by):
    """On torch's meta device, which refuses tensors of other devices."""
    small, random, meta = shrunk(find_config("tiny")), np.random.default_rng(0), torch.device("meta")
    for case in [*operation_cases(small, random), *decoder_cases(small, random)]:
        # These need numbers: saved files, and the number of labelled rows.
        if case.what not in MADE_OF_ADAPTERS | {"linear_cross_entropy"}:
            tensors = {name: torch.from_numpy(array).to(meta) for name, array in case.inputs.items()}
            tensors = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
            with backend(by):
                out = case.run(tensors, torch.bfloat16, meta)
            assert out.device == meta, case.what
            assert out.dtype in (torch.bfloat16, torch.bool, torch.long), case.what


def test_random_weights_hide_no_missing_term():
    """No bias is 0 and no norm is 1 in the cases, so that a missing term is found."""
    for case in decoder_cases(shrunk(find_config("gpt2-xl")), np.random.default_rng(0)):
        for name, array in case.inputs.items():
            if array.dtype.kind == "f":
                assert array.std() > 1e-3, name
                assert not (array == 0).any(), name
