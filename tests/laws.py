"""The laws of adaptation: one suite, every method x every law (figure 1, GPT-2 and Llama style where it matters).

A method's line in `CASES` says how it is built; `EXEMPT` says which law does not speak of it, and why. Any other gap
fails. Equality is 1e-12 in float64 with dropout off, and bit for bit where the very same arithmetic runs.
"""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from minillm import InputError, adapt, backend, generate
from minillm.adapt import METHODS, DoRA, FineTune, FrozenHead, InContext, LoRA, PiSSA, PrefixTuning, SoftPrompt
from minillm.data.batches import pad_left, pad_right
from minillm.operations import attention
from minillm.ops.attention import attention_weights, prepend, visible_keys
from minillm.training.loop import train
from minillm.training.schedule import TrainingSettings
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

WORDS = [7, 8, 9, 1]
PROMPT = torch.tensor([WORDS])
ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
LABELS = torch.tensor([1, 0])
EVERYWHERE = ("figure 1", "GPT-2", "Llama")

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
LOW_RANK = {"LoRA", "LoRA, every matrix"}


class Law(NamedTuple):
    """A law and the methods it does not speak of, with the reason."""

    holds: object
    exempt: dict


def base_of(style="Llama", seed=0):
    return random_decoder(STYLES[style], seed)


def build(name, base, seed=0):
    torch.manual_seed(seed)
    return CASES[name](base).eval()


def loss_of(method, ids=IDS):
    """Cross-entropy of the next token, or of the class where a method says the class."""
    logits = method(ids)
    if logits.dim() == 2:
        return F.cross_entropy(logits, LABELS[: len(ids)], reduction="sum")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def take_steps(method, count, after=lambda: None):
    """Some steps of AdamW; returns each step's gradients by name."""
    optimizer = torch.optim.AdamW(method.trainable().values(), lr=0.05, weight_decay=0.0)
    gradients = []
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(method).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in method.trainable().items()})
        optimizer.step()
        after()
    return gradients


def trained(name, base, count=3):
    method = build(name, base)
    if method.trainable():
        take_steps(method, count)
    return method


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# -- 1 -----------------------------------------------------------------------------------------------------------------


def law_1_what_is_frozen_stays_bit_for_bit_and_so_does_the_base(name, style):
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


# -- 2 -----------------------------------------------------------------------------------------------------------------


def law_2_everything_trainable_is_reached_and_moves(name, style):
    for evaluate in (False, True):
        method = build(name, base_of(style))
        start = {path: parameter.detach().clone() for path, parameter in method.trainable().items()}

        def look(method=method, evaluate=evaluate):
            if evaluate:
                with torch.no_grad():
                    method(IDS)

        gradients = take_steps(method, 3, look)
        for path, parameter in method.trainable().items():
            if path.endswith("attention.key.bias") and style != "Llama" and name not in PREFIXED:
                continue  # it adds the same to a query's score of every key, and the softmax takes it away
            assert gradients[1][path].abs().max() > 0, f"{path} has no gradient at step 2"
            assert not torch.equal(parameter, start[path]), f"{path} has not moved by step 3"


# -- 3 -----------------------------------------------------------------------------------------------------------------


def law_3_modes_and_merging_change_no_weight(name, style):
    base = base_of(style)
    method = trained(name, base)
    weights, logits = snapshot(method), method(IDS)
    method.train()
    method.eval()
    assert unchanged(method, weights)
    if name in PREFIXED or name == "frozen head":
        if name != "frozen head":
            with pytest.raises(InputError):
                adapt.merge(method)
        return
    of_base = snapshot(base)
    merged = adapt.merge(method)
    assert_close(merged(IDS), logits, "law")
    assert unchanged(base, of_base)
    assert unchanged(method, weights)
    assert torch.equal(method(IDS), logits), "with the merged decoder dropped, all is as it was"


# -- 4 -----------------------------------------------------------------------------------------------------------------


def law_4_a_row_says_the_same_alone_and_padded_on_either_side(name, style):
    method = trained(name, base_of(style))
    left, mask = pad_left(ROWS)
    right, last = pad_right(ROWS)
    padded_left = method(left, mask=mask)
    padded_right = method(right, mask=torch.arange(right.shape[1]) <= last[:, None])
    for index, row in enumerate(ROWS):
        alone = method(torch.tensor([row]))[0]
        if name == "frozen head":
            assert_close(padded_left[index], alone, "law")
            assert_close(padded_right[index], alone, "law")
        else:
            assert_close(padded_left[index, -len(row) :], alone, "law")
            assert_close(padded_right[index, : len(row)], alone, "law")


# -- 5 -----------------------------------------------------------------------------------------------------------------


def law_5_no_logit_depends_on_what_comes_later(name, style):
    method = trained(name, base_of(style))
    whole = method(IDS)
    for t in range(1, IDS.shape[1]):
        other = torch.cat((IDS[:, :t], (IDS[:, t:] + 1) % 13), 1)
        assert_close(method(other)[:, :t], whole[:, :t], "law")
        assert (method(other)[:, t:] - whole[:, t:]).abs().max() > 1e-6, "what comes now is read"


# -- 6 -----------------------------------------------------------------------------------------------------------------


def law_6_decoding_with_a_cache_recomputing_and_accumulating_are_exact(name, style):
    method = trained(name, base_of(style))
    ids = generate(method, IDS, max_new_tokens=4)
    for place in range(IDS.shape[1], ids.shape[1]):
        assert torch.equal(method(ids[:, :place])[:, -1].argmax(-1), ids[:, place])
    if method.trainable():
        _recomputed_equals_kept(method)
        _accumulated_equals_whole(name, style)


def _recomputed_equals_kept(method):
    def gradients():
        method.zero_grad()
        loss = loss_of(method)
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in method.trainable().values())]

    kept = gradients()
    method.decoder.recompute = True
    method.train()
    for again, first in zip(gradients(), kept, strict=True):
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
        if "key.bias" not in path:  # AdamW divides a gradient that is 0 by its own size: rounding decides its sign
            assert_close(parameter, whole.trainable()[path], "law in float32", path)


# -- 7 -----------------------------------------------------------------------------------------------------------------


def law_7_what_is_saved_is_the_state_and_gives_the_same_logits_on_this_base_only(name, style, directory):
    base = base_of(style)
    method = trained(name, base)
    method.save(directory)
    again = adapt.load(base_of(style), directory)
    assert torch.equal(again(IDS), method(IDS))
    assert set(again.state()) == set(method.state())
    assert all(torch.equal(tensor, method.state()[path]) for path, tensor in again.state().items())
    stranger = base_of(style)
    with torch.no_grad():
        stranger.blocks[1].feed_forward.up.weight[0, 0] += 1e-9
    with pytest.raises(InputError, match=r"blocks\.1\.feed_forward\.up\.weight"):
        adapt.load(stranger, directory)


# -- 8 -----------------------------------------------------------------------------------------------------------------


def law_8_what_starts_as_the_base_is_the_base_and_what_does_not_is_not(name, style):
    base = base_of(style)
    method = build(name, base)
    starts_equal = METHODS[type(method)].equal_at_start or name == "prefix, gated"
    if name in ("DoRA", "PiSSA"):
        assert_close(method(IDS), base(IDS), "law")
    elif starts_equal:
        assert torch.equal(method(IDS), base(IDS))
    else:
        assert (method(IDS) - base(IDS)).abs().max() > 1e-3


# -- 9 -----------------------------------------------------------------------------------------------------------------


def law_9_a_hard_prompt_is_its_keys_and_values_is_a_soft_prompt_of_its_embeddings(name, style):
    base = base_of(style)
    read = base(torch.cat((PROMPT.expand(len(IDS), -1), IDS), 1))[:, len(WORDS) :]
    assert_close(build(name, base)(IDS), read, "law")


# -- 10 ----------------------------------------------------------------------------------------------------------------


def law_10_a_probe_on_stored_features_is_an_output_layer_on_a_frozen_body(name, style):
    base = base_of(style)
    by_ids, by_features = (build(name, base) for _ in range(2))
    take_steps(by_ids, 3)
    with torch.no_grad():
        features = base.features(IDS)[:, -1]
    optimizer = torch.optim.AdamW(by_features.trainable().values(), lr=0.05, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(by_features.classifier(features), LABELS, reduction="sum").backward()
        optimizer.step()
    for path, parameter in by_ids.trainable().items():
        assert_close(by_features.trainable()[path], parameter, "law", path)


# -- 11 ----------------------------------------------------------------------------------------------------------------


def law_11_low_rank_updates_add_exactly_and_have_their_rank(name, style):
    base = base_of(style)
    first = take_steps(build(name, base), 1)[0]
    assert all((gradient == 0).all() for path, gradient in first.items() if path.endswith(".a"))
    one, two = trained(name, base), trained(name, base, 2)
    both = adapt.add(one, two)
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for method in (one, two):
            for path, dw in adapt.updates(method).items():
                assert torch.linalg.matrix_rank(dw) <= method.r
                by_hand.get_submodule(path).weight += dw
    assert_close(both(IDS), by_hand(IDS), "law")


# -- 12 ----------------------------------------------------------------------------------------------------------------


def law_12_a_prefix_takes_its_share_of_the_attention_or_adds_to_it_by_its_gate(name, style):
    base = base_of(style)
    prefix = trained(name, base).prefix().layer(1)
    config, random = base.config, torch.Generator().manual_seed(0)
    shape = (2, config.heads, 5, config.head_width)
    query = torch.randn(shape, generator=random, dtype=torch.float64)
    key, value = (torch.randn(2, config.kv_heads, 5, shape[-1], generator=random, dtype=torch.float64) for _ in "kv")
    with_prefix = attention(query, key, value, prefix=prefix)
    text = attention(query, key, value)
    alone = _all_of(prefix, query)
    if prefix.gate is not None:
        expected = text + prefix.gate.tanh()[:, None, None] * alone
    else:
        keys = prepend(prefix, key, value, None)[0]
        weights = attention_weights(query, keys, visible_keys(query.shape[2], keys.shape[2], None, query.device))
        mass = weights[..., : prefix.key.shape[2]].sum(-1, keepdim=True)
        expected = (1 - mass) * text + mass * alone
    assert_close(with_prefix, expected, "law")


def _all_of(prefix, query):
    """Attention to the prefix alone, head by head and without a mask."""
    group = query.shape[1] // prefix.key.shape[1]
    sides = (side.repeat_interleave(group, 1) for side in (prefix.key, prefix.value))
    key, value = (side.expand(len(query), -1, -1, -1) for side in sides)
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value


ALL_BUT = set(CASES).difference
NOTHING = {"in context": "it trains nothing"}
CLASSES = {"frozen head": "it returns a text's classes, not its next tokens"}
LAWS = {
    1: Law(law_1_what_is_frozen_stays_bit_for_bit_and_so_does_the_base, {}),
    2: Law(law_2_everything_trainable_is_reached_and_moves, NOTHING),
    3: Law(law_3_modes_and_merging_change_no_weight, {}),
    4: Law(law_4_a_row_says_the_same_alone_and_padded_on_either_side, {}),
    5: Law(law_5_no_logit_depends_on_what_comes_later, CLASSES),
    6: Law(law_6_decoding_with_a_cache_recomputing_and_accumulating_are_exact, CLASSES),
    7: Law(law_7_what_is_saved_is_the_state_and_gives_the_same_logits_on_this_base_only, {}),
    8: Law(law_8_what_starts_as_the_base_is_the_base_and_what_does_not_is_not, CLASSES),
    9: Law(
        law_9_a_hard_prompt_is_its_keys_and_values_is_a_soft_prompt_of_its_embeddings,
        dict.fromkeys(ALL_BUT({"in context", "soft prompt, of words", "prefix, of words"}), "it is not made of words"),
    ),
    10: Law(
        law_10_a_probe_on_stored_features_is_an_output_layer_on_a_frozen_body,
        dict.fromkeys(ALL_BUT({"frozen head"}), "it is no probe"),
    ),
    11: Law(
        law_11_low_rank_updates_add_exactly_and_have_their_rank,
        dict.fromkeys(ALL_BUT(LOW_RANK), "it is no sum of a frozen W and s B A from B = 0"),
    ),
    12: Law(
        law_12_a_prefix_takes_its_share_of_the_attention_or_adds_to_it_by_its_gate,
        dict.fromkeys(ALL_BUT(PREFIXED), "nothing stands before its text"),
    ),
}
IN_PLAIN = [*(pytest.param(style, marks=pytest.mark.slow) for style in EVERYWHERE[:-1]), EVERYWHERE[-1]]
"""By the formulas the Llama style runs always, the others in the long run."""
CELLS = [(number, name) for number, law in LAWS.items() for name in CASES if name not in law.exempt]


@pytest.mark.parametrize("style", EVERYWHERE)
@pytest.mark.parametrize(("number", "name"), CELLS)
def test_the_law_holds(number, name, style, tmp_path):
    holds = LAWS[number].holds
    if number == 7:
        holds(name, style, tmp_path / "adapter")
    else:
        holds(name, style)


@pytest.mark.parametrize("style", IN_PLAIN)
@pytest.mark.parametrize(("number", "name"), CELLS)
def test_the_law_holds_for_the_formulas(number, name, style, tmp_path):
    with backend("plain"):
        test_the_law_holds(number, name, style, tmp_path)


def test_every_method_is_under_the_laws_and_every_exemption_has_a_method_and_a_reason():
    base = base_of()
    built = {type(build(name, base)) for name in CASES}
    assert built == set(METHODS), "a method of the table has no case, or a case no line in the table"
    for law in LAWS.values():
        assert set(law.exempt) <= set(CASES)
        assert all(law.exempt.values())
        assert set(law.exempt) != set(CASES), "a law that speaks of no method"
