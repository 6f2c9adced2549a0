"""The laws of adaptation: every law for every method, in the styles of figure 1, GPT-2, Llama and two relatives of it.

`CASES` says how each method is built; `@law` names the methods that a law does not apply to, and why. Equality is 1e-12
in float64 with dropout off, and bit for bit where the same arithmetic runs.
"""

import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from minillm import InputError, adapt, backend, generate
from minillm.adapt import METHODS, DoRA, FineTune, FrozenHead, InContext, LoRA, PiSSA, PrefixTuning, SoftPrompt
from minillm.data.batches import pad_left, pad_right
from minillm.decoder import Decoder
from minillm.operations import attention, current_backend
from minillm.ops.attention import attention_weights, prepend, visible_keys
from minillm.training.loop import train
from minillm.training.schedule import TrainingSettings
from tests.decoders import STYLES, random_decoder, snapshot, unchanged
from tests.tolerances import assert_close

WORDS = [7, 8, 9, 1]
PROMPT = torch.tensor([WORDS])
ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
LABELS = torch.tensor([1, 0])
EVERYWHERE = ("figure 1", "GPT-2", "Llama")
RELATIVES = ("Mistral", "Qwen")

CASES = {
    "in context": lambda base: InContext(base, PROMPT),
    "soft prompt, random": lambda base: SoftPrompt(base, 3, init="random"),
    "soft prompt, vocabulary": lambda base: SoftPrompt(base, 3),
    "soft prompt, of words": lambda base: SoftPrompt(base, 4, init=WORDS),
    "prefix, random": lambda base: PrefixTuning(base, 3),
    "prefix, zero": lambda base: PrefixTuning(base, 3, init="zero"),
    "prefix, of words": lambda base: PrefixTuning(base, 4, init=WORDS),
    "prefix, gated": lambda base: PrefixTuning(base, 3, gated=True),
    "prefix, by an MLP": lambda base: PrefixTuning(base, 3, hidden=11),
    "prefix, unshifted": lambda base: PrefixTuning(base, 3, shift_positions=False),
    "frozen head": lambda base: FrozenHead(base, 2),
    "LoRA": lambda base: LoRA(base, r=2, alpha=4),
    "LoRA, every matrix": lambda base: LoRA(base, r=3, alpha=2, targets=("all-linear",)),
    "DoRA": lambda base: DoRA(base, r=2, alpha=4),
    "PiSSA": lambda base: PiSSA(base, r=2, alpha=2),
    "output layer": lambda base: FineTune(base, layers=["head.weight"]),
    "last block": lambda base: FineTune(base, layers=1),
    "all weights": lambda base: FineTune(base),
    "LoRA and a prefix": lambda base: adapt.stack(LoRA(base, r=2, alpha=4), PrefixTuning(base, 3)),
    "LoRA and a soft prompt": lambda base: adapt.stack(LoRA(base, r=2, alpha=4), SoftPrompt(base, 3)),
}
PREFIXED = {name for name in CASES if "prefix" in name or "prompt" in name or name == "in context"}
TOKEN_PROMPTS = {"in context", "soft prompt, of words", "prefix, of words"}


ALL_BUT = set(CASES).difference


class Law(NamedTuple):
    """A law, and the methods that it does not apply to with the reason."""

    holds: object
    exempt: dict


LAWS: dict[int, Law] = {}


def law(number, exempt=(), reason=""):
    """Registers the function below as a law."""

    def register(holds):
        LAWS[number] = Law(holds, dict.fromkeys(exempt, reason))
        return holds

    return register


NO_LANGUAGE_MODEL = ({"frozen head"}, "it returns the classes of a text, not its next tokens")


def base_of(style="Llama", seed=0):
    return random_decoder(STYLES[style], seed)


def build(name, base, seed=0):
    torch.manual_seed(seed)
    return CASES[name](base).eval()


def loss_of(method, ids=IDS):
    """Cross-entropy of the next tokens, or of the classes if the method is a classifier."""
    logits = method(ids)
    if logits.dim() == 2:
        return F.cross_entropy(logits, LABELS[: len(ids)], reduction="sum")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def take_steps(method, count, evaluate=False):
    """Takes steps of AdamW, perhaps with an evaluation after each; returns the gradients of each step by name."""
    optimizer = torch.optim.AdamW(method.trainable().values(), lr=0.05, weight_decay=0.0)
    gradients = []
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(method).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in method.trainable().items()})
        optimizer.step()
        if evaluate:
            with torch.no_grad():
                method(IDS)
    return gradients


class Trained(NamedTuple):
    base: Decoder
    method: adapt.Adaptation
    start: dict[str, torch.Tensor]
    gradients: list[dict[str, torch.Tensor]]


def trained(name, style, seed=0, evaluate=False):
    """A method after three steps, which the laws share and must not change."""
    return _trained(name, style, seed, evaluate, current_backend())


@cache
def _trained(name, style, seed, evaluate, _):
    base = base_of(style)
    method = build(name, base, seed)
    start = {path: parameter.detach().clone() for path, parameter in method.trainable().items()}
    return Trained(base, method, start, take_steps(method, 3, evaluate) if method.trainable() else [])


@law(1)
def frozen_weights_and_the_base_stay_bit_identical(name, style):
    base = base_of(style)
    weights, logits, flags = snapshot(base), base(IDS), [parameter.requires_grad for parameter in base.parameters()]
    method = build(name, base)
    frozen = {path: p.detach().clone() for path, p in method.named_parameters() if not p.requires_grad}
    if method.trainable():
        take_steps(method, 3)
    assert all(torch.equal(p, frozen[path]) for path, p in method.named_parameters() if not p.requires_grad)
    assert unchanged(base, weights)
    assert torch.equal(base(IDS), logits)
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    assert all(parameter.grad is None for parameter in base.parameters())


@law(2, {"in context"}, "it trains nothing")
def every_trainable_parameter_has_a_gradient_and_moves(name, style):
    for evaluate in (False, True):
        base, method, start, gradients = trained(name, style, evaluate=evaluate)
        for path, parameter in method.trainable().items():
            if path.endswith("attention.key.bias") and base.config.positions != "rotary" and name not in PREFIXED:
                continue  # it adds the same number to all scores of a query, which the softmax ignores
            assert gradients[1][path].abs().max() > 0, f"{path} has no gradient at step 2"
            assert not torch.equal(parameter, start[path]), f"{path} has not moved by step 3"


@law(3)
def modes_and_merging_change_no_weight_and_a_merge_equals_the_method(name, style):
    base, method, *_ = trained(name, style)
    weights, logits = snapshot(method), method(IDS)
    method.train()
    method.eval()
    assert unchanged(method, weights)
    of_base = snapshot(base)
    if name in PREFIXED:
        with pytest.raises(InputError):
            adapt.merge(method)
    elif name != "frozen head":
        assert_close(adapt.merge(method)(IDS), logits, "law")
    assert unchanged(base, of_base)
    assert unchanged(method, weights)
    assert torch.equal(method(IDS), logits), "the merge changed the method"


@law(4)
def a_row_of_a_batch_equals_that_row_alone_with_padding_on_either_side_and_in_a_packed_row(name, style):
    method = trained(name, style).method
    left, mask = pad_left(ROWS)
    right, last = pad_right(ROWS)
    padded_left = method(left, mask=mask)
    padded_right = method(right, mask=torch.arange(right.shape[1]) <= last[:, None])
    numbers = torch.tensor([[number for number, row in enumerate(ROWS) for _ in row]])
    joined = torch.tensor([[token for row in ROWS for token in row]])
    packed = method(joined, mask=numbers + 1) if name != "frozen head" else None
    for index, row in enumerate(ROWS):
        alone = method(torch.tensor([row]))[0]
        tokens = len(row) if name != "frozen head" else len(alone)
        assert_close(padded_left[index, -tokens:], alone, "law")
        assert_close(padded_right[index, :tokens], alone, "law")
        if packed is not None:
            assert_close(packed[numbers == index], alone, "law")


@law(5, *NO_LANGUAGE_MODEL)
def no_logit_depends_on_later_tokens(name, style):
    method = trained(name, style).method
    whole = method(IDS)
    for t in range(1, IDS.shape[1]):
        other = torch.cat((IDS[:, :t], (IDS[:, t:] + 1) % 13), 1)
        logits = method(other)
        assert_close(logits[:, :t], whole[:, :t], "law")
        assert (logits[:, t:] - whole[:, t:]).abs().max() > 1e-6, "the logits do not depend on token t"


@law(6, *NO_LANGUAGE_MODEL)
def cached_decoding_recomputation_and_accumulation_are_exact(name, style):
    method = trained(name, style).method
    ids = generate(method, IDS, max_new_tokens=4)
    for place in range(IDS.shape[1], ids.shape[1]):
        assert torch.equal(method(ids[:, :place])[:, -1].argmax(-1), ids[:, place])
    if method.trainable():
        _recomputed_equals_stored(method)
        _accumulated_equals_whole(name, style)


def _recomputed_equals_stored(method):
    def gradients():
        method.zero_grad()
        loss = loss_of(method)
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in method.trainable().values())]

    stored = gradients()
    method.decoder.recompute = True
    method.train()
    for again, first in zip(gradients(), stored, strict=True):
        assert_close(again, first, "law")
    method.eval()
    method.decoder.recompute = False


def _accumulated_equals_whole(name, style):
    def fit(settings):
        method = build(name, base_of(style))
        rows = [row.tolist() for row in IDS] + [[1, 5, 9, 2, 6], [8, 8, 8, 8, 1], [4, 4, 3, 3, 2]]

        def loss(batch):
            return loss_of(method, torch.tensor(batch)), len(batch)

        train(method, rows, loss, len, settings)
        return method

    whole = fit(TrainingSettings(epochs=1, batch_size=5, learning_rate=1e-3))
    parts = fit(TrainingSettings(epochs=1, batch_size=2, accumulate=3, learning_rate=1e-3))
    for path, parameter in parts.trainable().items():
        if "key.bias" not in path:  # its gradient is 0 up to rounding, and AdamW divides it by its own size
            assert_close(parameter, whole.trainable()[path], "law in float32", path)


@law(7)
def a_saved_adapter_is_the_state_and_gives_the_same_logits_on_its_own_base_only(name, style):
    method, other = trained(name, style).method, base_of(style)
    with torch.no_grad():
        other.blocks[1].feed_forward.up.weight[0, 0] += 1e-9
    with TemporaryDirectory() as directory:
        method.save(Path(directory, "adapter"))
        loaded = adapt.load(base_of(style), Path(directory, "adapter"))
        with pytest.raises(InputError, match=r"blocks\.1\.feed_forward\.up\.weight"):
            adapt.load(other, Path(directory, "adapter"))
    assert torch.equal(loaded(IDS), method(IDS))
    assert set(loaded.state()) == set(method.state())
    assert all(torch.equal(tensor, method.state()[path]) for path, tensor in loaded.state().items())


@law(8, *NO_LANGUAGE_MODEL)
def a_method_equals_the_base_at_the_start_if_and_only_if_the_table_says_so(name, style):
    base = base_of(style)
    method = build(name, base)
    starts_equal = METHODS[type(method)].equal_at_start or name == "prefix, gated"
    if name in ("DoRA", "PiSSA"):
        assert_close(method(IDS), base(IDS), "law")
    elif starts_equal:
        assert torch.equal(method(IDS), base(IDS))
    else:
        assert (method(IDS) - base(IDS)).abs().max() > 1e-3


@law(9, ALL_BUT(TOKEN_PROMPTS), "it has no prompt of tokens")
def a_hard_prompt_equals_its_keys_and_values_and_a_soft_prompt_of_its_embeddings(name, style):
    base = base_of(style)
    together = base(torch.cat((PROMPT.expand(len(IDS), -1), IDS), 1))[:, len(WORDS) :]
    assert_close(build(name, base)(IDS), together, "law")


@law(10, ALL_BUT({"frozen head"}), "it is not a linear probe")
def a_probe_on_cached_features_equals_an_output_layer_on_a_frozen_body(name, style):
    base, by_ids, *_ = trained(name, style)
    by_features = build(name, base)
    with torch.no_grad():
        features = base.features(IDS)[:, -1]
    optimizer = torch.optim.AdamW(by_features.trainable().values(), lr=0.05, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(by_features.classifier(features), LABELS, reduction="sum").backward()
        optimizer.step()
    for path, parameter in by_ids.trainable().items():
        assert_close(by_features.trainable()[path], parameter, "law", path)


@law(11, ALL_BUT({"LoRA", "LoRA, every matrix"}), "it is not W + s B A with B = 0 at the start")
def low_rank_updates_add_exactly_and_have_their_rank(name, style):
    base, one, _, gradients = trained(name, style)
    assert all((gradient == 0).all() for path, gradient in gradients[0].items() if path.endswith(".a"))
    two = trained(name, style, seed=1).method
    both = adapt.add(one, two)
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for method in (one, two):
            for path, dw in adapt.updates(method).items():
                assert torch.linalg.matrix_rank(dw) <= method.r
                by_hand.get_submodule(path).weight += dw
    assert_close(both(IDS), by_hand(IDS), "law")


@law(12, ALL_BUT(PREFIXED), "it has no prefix")
def attention_to_a_prefix_is_weighted_by_its_softmax_mass_or_added_by_its_gate(name, style):
    base, method, *_ = trained(name, style)
    prefix = method.prefix().layer(1)
    config, random = base.config, torch.Generator().manual_seed(0)
    shape = (2, config.heads, 5, config.head_width)
    query = torch.randn(shape, generator=random, dtype=torch.float64)
    key, value = (torch.randn(2, config.kv_heads, 5, shape[-1], generator=random, dtype=torch.float64) for _ in "kv")
    with_prefix = attention(query, key, value, prefix=prefix)
    text = attention(query, key, value)
    alone = _attention_to(prefix, query)
    if prefix.gate is not None:
        expected = text + prefix.gate.tanh()[:, None, None] * alone
    else:
        keys = prepend(prefix, key, value, None)[0]
        weights = attention_weights(query, keys, visible_keys(query.shape[2], keys.shape[2], None, query.device))
        mass = weights[..., : prefix.key.shape[2]].sum(-1, keepdim=True)
        expected = (1 - mass) * text + mass * alone
    assert_close(with_prefix, expected, "law")


def _attention_to(prefix, query):
    """Attention to the prefix alone, without a mask."""
    group = query.shape[1] // prefix.key.shape[1]
    sides = (side.repeat_interleave(group, 1) for side in (prefix.key, prefix.value))
    key, value = (side.expand(len(query), -1, -1, -1) for side in sides)
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value


STYLED = [pytest.param(EVERYWHERE[0], marks=pytest.mark.slow), *EVERYWHERE[1:]]
"""The default run covers the styles of today."""
CELLS = [(number, name) for number, law in LAWS.items() for name in CASES if name not in law.exempt]


@pytest.mark.parametrize("style", STYLED)
@pytest.mark.parametrize(("number", "name"), CELLS)
def test_the_law_holds(number, name, style):
    LAWS[number].holds(name, style)


@pytest.mark.slow
@pytest.mark.parametrize("style", EVERYWHERE[-1:])
@pytest.mark.parametrize(("number", "name"), CELLS)
def test_the_law_holds_for_the_formulas(number, name, style):
    """In one style, because each formula is compared with its fast form in `test_operations.py`."""
    with backend("plain"):
        LAWS[number].holds(name, style)


NOT_BY_TOKENS = (9, "prefix, of words", "Mistral")
"""A window passes over a prompt of tokens, but not over a trained prefix."""
# The default run covers padding, caches and prompts, where a window can go wrong; the slow run covers all laws.
QUICK = {(number, name, "Mistral") for number, name in CELLS if number in (4, 9) or (number == 6 and name in PREFIXED)}
OF_RELATIVES = [(*cell, style) for cell in CELLS for style in RELATIVES if (*cell, style) != NOT_BY_TOKENS]


@pytest.mark.parametrize(
    ("number", "name", "style"),
    [pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow) for cell in OF_RELATIVES],
)
def test_the_law_holds_for_the_relatives_of_llama(number, name, style):
    LAWS[number].holds(name, style)


def test_every_method_has_a_case_and_every_exemption_a_method_and_a_reason():
    base = base_of()
    assert {type(build(name, base)) for name in CASES} == set(METHODS)
    assert set(LAWS) == set(range(1, 13))
    for each in LAWS.values():
        assert set(each.exempt) < set(CASES)
        assert all(each.exempt.values())
    assert set(CASES) >= TOKEN_PROMPTS
