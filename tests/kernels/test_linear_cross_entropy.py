"""The kernel of the loss: only needed gradients, one chunk of logits at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from minillm.kernels import linear_cross_entropy as kernels
from minillm.lab.check_operations import operation_case
from minillm.operations import FAST, IGNORED, TRITON, backend, linear_cross_entropy
from tests.kernels.against_numpy import DEVICE, assert_the_kernel_is_right, dtypes, examples, opcheck
from tests.kernels.fenced import assert_nothing_else_is_written
from tests.strategies import FOR_KERNELS, cases, randoms

# One row per chunk, a few rows, all rows.
chunks = st.sampled_from((1, 2048, kernels.CHUNK_BYTES))


def _case(hidden, weight, labels):
    arguments = {"hidden": hidden, "weight": weight, "labels": np.array(labels)}
    return operation_case("linear_cross_entropy", "linear_cross_entropy", **arguments)


@examples
@given(st.data(), chunks, randoms)
def test_chunks_do_not_change_the_result(data, chunk, random):
    vocabulary = data.draw(st.sampled_from((1, 2, 64, 127, 509)))
    # The order of a long float32 sum in BLAS may change it by more than 4 ulp: see below.
    dtype = data.draw(dtypes if vocabulary < 100 else st.just(torch.bfloat16))
    case = data.draw(
        cases("linear_cross_entropy", FOR_KERNELS._replace(rows=(0, 1, 2, 5, 13), vocabularies=(vocabulary,)))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "CHUNK_BYTES", chunk)
        assert_the_kernel_is_right(case, random, dtype)


def _inputs(rows=5, width=3, vocabulary=7):
    hidden, weight = (torch.randn(n, width, device=DEVICE, requires_grad=True) for n in (rows, vocabulary))
    return hidden, weight, torch.randint(0, vocabulary, (rows,), device=DEVICE)


@pytest.mark.parametrize(("vocabulary", "spread"), [(61, 1e4), (127, 3), (509, 3)])
def test_the_softmax_of_large_logits_and_of_long_rows_is_exact_in_float32(vocabulary, spread):
    """The head is the identity: hidden states are the logits, and their gradients are the kernel's own."""
    random = np.random.default_rng(0)
    case = _case(spread * random.normal(size=(3, vocabulary)), np.eye(vocabulary), [0, IGNORED, vocabulary - 1])
    assert_the_kernel_is_right(case, random, torch.float32)


def test_the_loss_of_a_certain_prediction_is_exact():
    """log Σ exp(z) - z_label loses 1e-4 among logits of 1000; (max - z_label) + log Σ exp(z - max) does not."""
    case = _case(np.ones((1, 1)), np.array([[1000.0], [991.0]]), [0])
    assert_the_kernel_is_right(case, np.random.default_rng(0), torch.float32)


@pytest.mark.parametrize("label", [0, 8192, 16_410])
def test_a_row_of_several_blocks_is_one_softmax(label):
    """Three blocks, the last not full; one labelled row among others."""
    random = np.random.default_rng(0)
    case = _case(random.normal(size=(3, 3)), random.normal(size=(16_411, 3)), [IGNORED, label, IGNORED])
    assert_the_kernel_is_right(case, random, torch.bfloat16)


def test_only_needed_products_of_labelled_rows_are_computed():
    """2 N D V FLOPs for the loss, as many for each gradient; N counts the labelled rows, whatever the chunks."""
    hidden, weight, labels = _inputs(rows=5)
    labels[1] = labels[4] = IGNORED
    product = 2 * 3 * hidden.shape[1] * len(weight)
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            _, *gradients = kernels._linear_cross_entropy._init_fn(hidden, weight, labels, torch.float32, *wanted)
        assert flops.get_total_flops() == (1 + sum(wanted)) * product
        assert [gradient.numel() > 0 for gradient in gradients] == list(wanted)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_inputs_get_no_gradient(frozen, monkeypatch):
    wanted, run = [], kernels._linear_cross_entropy
    monkeypatch.setattr(kernels, "_linear_cross_entropy", lambda *args: wanted.append(args[-2:]) or run(*args))
    hidden, weight, labels = _inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    kernels.linear_cross_entropy(hidden, weight, labels).backward()
    with torch.no_grad():
        kernels.linear_cross_entropy(hidden, weight, labels)
    assert wanted == [(frozen != "hidden", frozen != "weight"), (False, False)]
    assert [side.grad is None for side in (hidden, weight)] == [frozen == "hidden", frozen == "weight"]


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, out.nbytes if isinstance(out, torch.Tensor) else 0)
        return out


def test_at_most_one_chunk_of_logits_is_in_memory(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 8 * 128 * 4)
    hidden, weight, labels = _inputs(rows=64, vocabulary=127)
    with Largest() as largest, torch.no_grad():
        kernels._linear_cross_entropy._init_fn(hidden, weight, labels, torch.float32, True, True)
    assert largest.bytes == kernels.CHUNK_BYTES


def test_chunks_have_equal_sizes():
    assert kernels._rows_at_once(8192, 2 * 131_072) == 2048
    assert kernels._rows_at_once(2049, 2 * 131_072) == 1025
    assert kernels._rows_at_once(3, 2 * 131_072) == 3


def test_the_weights_gradient_is_summed_in_float32_and_rounded_once(monkeypatch):
    """Quarters added to 64, one chunk after another, would be lost in bfloat16."""
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 1)
    hidden = torch.tensor([128.0] + 64 * [0.5], device=DEVICE, dtype=torch.bfloat16)[:, None]
    weight = torch.zeros(2, 1, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    kernels.linear_cross_entropy(hidden, weight, torch.zeros(65, device=DEVICE, dtype=torch.long)).backward()
    assert weight.grad.flatten().tolist() == [-80.0, 80.0]


def test_gradients_are_multiplied_by_that_of_the_loss_on_every_call():
    hidden, weight, labels = _inputs()
    loss = kernels.linear_cross_entropy(hidden, weight, labels)
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    for one, tripled in zip(once, torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True), strict=True):
        assert torch.allclose(3 * one, tripled)
    assert torch.equal(once[0], torch.autograd.grad(loss, hidden)[0])


def test_a_second_derivative_is_refused_rather_than_wrong():
    hidden, weight, labels = _inputs()
    (gradient,) = torch.autograd.grad(kernels.linear_cross_entropy(hidden, weight, labels), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="register_autograd"):
        gradient.sum().backward()


def test_nothing_is_written_out_of_bounds():
    hidden, weight, labels = _inputs(vocabulary=131)
    assert_nothing_else_is_written(
        kernels._linear_cross_entropy, hidden, weight, labels, torch.float32, True, True
    )  # fmt: skip


@pytest.mark.parametrize("label", [7, -1])
def test_a_label_out_of_range_makes_the_loss_nan(label):
    hidden, weight, labels = _inputs(vocabulary=7)
    labels[2] = label
    assert kernels.linear_cross_entropy(hidden, weight, labels).isnan()


def test_autocast_multiplies_in_half_precision_as_it_does_in_torch():
    hidden, weight, labels = _inputs(rows=13, width=61, vocabulary=127)
    found = {}
    for name in (FAST, TRITON):
        with backend(name), torch.autocast(DEVICE.type, torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, labels)
        found[name] = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    exact = linear_cross_entropy(hidden, weight, labels)
    for one, other in zip(found[FAST], found[TRITON], strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.allclose(one, other, atol=0.03 * one.detach().abs().max().item())
    assert abs(found[TRITON][0] - found[FAST][0]) < abs(found[TRITON][0] - exact) / 10


@pytest.mark.parametrize(
    "wanted", [(True, True), *(pytest.param(one, marks=pytest.mark.slow) for one in [(True, False), (False, True)])]
)
def test_the_loss_is_a_registered_torch_operation(wanted):
    hidden, weight, labels = _inputs()
    labels[1] = IGNORED
    hidden, weight = (side.detach().requires_grad_(want) for side, want in zip((hidden, weight), wanted, strict=True))
    opcheck(kernels._linear_cross_entropy, hidden, weight, labels, torch.float32, *wanted)
