"""Mutations of the arithmetic, which the tests must detect: `python -m pytest -m slow tests/test_mutations.py`.

A mutation is a small edit of a file of `minillm` (file, old text, new text), and the test that must fail because of it.
The old text occurs in the file exactly once. A change of an operation includes its mutations here.
"""

from pathlib import Path
from typing import NamedTuple

from tests.strategies import OPERATIONS


class Mutation(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    test: str


TILES = ("kernels/_attention_tiles.py", "kernels/test_attention.py")
KERNEL = "kernels/attention.py"
BACKWARD = ("kernels/_attention_backward.py", "kernels/test_attention.py")
LOSS = ("ops/linear_cross_entropy.py", "fast/test_linear_cross_entropy.py")
FAST_LOSS = ("fast/linear_cross_entropy.py", LOSS[1])
DECODER = ("decoder.py", "reference/test_decoder.py")
LAWS = "decoder.py"
POSITIONS = ("key_values.py", "reference/test_decoder.py")
FILES = "adapters/load.py"
SAVED = ("adapt/method.py", "adapters/test_load.py")
SEALED = ("runtime/files.py", "adapt/test_description.py")
DESCRIBED = ("adapt/description.py", "adapters/test_load.py")
FINGERPRINT = "runtime/fingerprint.py"
ACTIVATIONS = "training/activation_cache.py"
POOLING = ("adapt/frozen_head.py", "training/test_feature_cache.py")
STORE = "training/feature_cache.py"
LOGISTIC = "adapt/logistic.py"
FINE_TUNE = "adapt/fine_tune.py"
LOOP = "training/loop.py"
LEARNER = ("training/learners.py", "training/test_numpy_learner.py")
NUMPY = "training/numpy_learner.py"
FAMILY = ("hub/llama_settings.py", "hub/test_families.py")
WINDOWED = "laws.py::test_the_law_holds_for_the_relatives_of_llama[9-{}-Mistral]"
PEFT = "hub/peft.py"
GGUF_TOKENIZER = ("hub/gguf_tokenizer_export.py", "hub/test_llama_cpp.py")
GGUF_PIECES = ("hub/gguf_sentencepiece.py", "hub/test_sentencepiece.py")
GGUF_LORA = ("hub/gguf_lora.py", "hub/test_llama_cpp.py")
PEFT_LORA = ("hub/peft_lora.py", "hub/test_peft.py")


def mutation(what, where, old, new):
    """`where` is the file that is changed, and the test that must fail, by default `test_` and the name of the file."""
    file, test = where if isinstance(where, tuple) else (where, str(Path(where).with_name(f"test_{Path(where).name}")))
    return Mutation(what, file, old, new, test)


def _suite(room, name, test, cell):
    """The implementation of an operation, and its test in the suite of all operations."""
    return f"{room}/{OPERATIONS[name][0]}.py", f"test_operations.py::{test}[{cell}]"


def plain(name):
    return _suite("ops", name, "test_torch_equals_numpy_in_float64", f"{name}-plain")


def fast(name):
    return _suite("fast", name, "test_torch_equals_numpy_in_float64", f"{name}-fast")


def fast_in_half(name):
    return _suite("fast", name, "test_the_fast_form_is_as_near_to_numpy_as_the_formula", name)


CHECK = "lab/test_check.py::test_every_operation_and_every_kind_of_decoder_passes_every_rung"
# fmt: off
_ROWS = [
    ("a transposed head", DECODER, '"B T (heads K) -> B heads T K"', '"B T (K heads) -> B heads T K"'),
    ("heads merged in the wrong order", DECODER, '"B H T K -> B T (H K)"', '"B H T K -> B T (K H)"'),
    ("a query that uses another group's keys", plain("attention"),
        "side.repeat_interleave(heads // side.shape[1], 1)", "side.repeat(1, heads // side.shape[1], 1, 1)"),
    ("a missing scale", plain("attention"), " / math.sqrt(query.shape[-1])", ""),
    ("a prefix hidden by the mask", plain("attention"), "value=True", "value=False"),
    ("a prefix after the text", plain("attention"), "before, (key, value), strict=", "(key, value), before, strict="),
    ("a gate without its tanh", plain("attention"), "prefix.gate.tanh()", "prefix.gate"),
    ("a mask that shows the next token", plain("visible_keys"), ".tril(keys - queries)", ".tril(keys - queries + 1)"),
    ("a mask that hides the token itself", plain("visible_keys"), ".tril(keys - queries)", ".tril(keys - queries - 1)"),
    ("a mask aligned at the start", plain("visible_keys"), ".tril(keys - queries)", ".tril(0)"),
    ("padding that attends to nothing", plain("visible_keys"), "& mask[:, None] | itself", "& mask[:, None]"),
    ("padding that is attended to", plain("visible_keys"), "causal & mask[:, None] | itself", "causal | itself"),
    ("a window of one token less", plain("visible_keys"), "place[:, None] < window", "place[:, None] < window - 1"),
    ("a window that counts padding", plain("visible_keys"), "if mask is None else mask.cumsum(-1)", ""),
    ("a window that passes over a trained prefix", plain("visible_keys"), "near[..., :always] = True", "pass"),
    ("a window that one query ignores", "fast/attention.py",
        "(mask is None and window is None and queries == 1)", "(mask is None and queries == 1)"),
    ("a missing scale, fast", fast("attention"), "is_causal=square,", "is_causal=square, scale=1.0,"),
    ("a gate without its tanh, fast", fast("attention"), "prefix.gate.tanh()", "prefix.gate"),
    ("another group's keys, in bfloat16", fast_in_half("attention"), "(G group) T K ->", "(group G) T K ->"),
    ("a missing scale, in bfloat16", fast_in_half("attention"), " / math.sqrt(query.shape[-1])", ""),
    ("dropout that forgets attention", ("fast/attention.py", "ops/test_dropout.py"), "dropout_p=", "dropout_p=0 * "),
    ("a kernel that shows the next token", TILES, "<= last[:, None]", "<= last[:, None] + 1"),
    ("a kernel in which padding attends to nothing", TILES, " | (key[None, :] == last[:, None])", ""),
    ("a stack of queries in another order", TILES, "row % GROUP * stride_h", "row % 2 * stride_h"),
    ("a sum that is not rescaled", KERNEL, "total * rescale", "total"),
    ("a prefix without its last key", KERNEL, "(BLOCK_T,), prompt - 1", "(BLOCK_T,), prompt - 2"),
    ("gradients of queries without their delta", BACKWARD, " - delta[:, None]", ""),
    ("gradients of padding that are not zeroed", BACKWARD,
        "dk, dv = tl.where(real[:, None], dk, 0.0), tl.where(real[:, None], dv, 0.0)", "pass"),
    ("a prefix trained on the first row alone", BACKWARD, "b + step // tiles", "b"),
    ("half of the queries after a key", BACKWARD, "end = tiles\n", "end = (start + tiles + 1) // 2\n"),
    ("a dropped 1 / (1 - p)", plain("dropout"), " / (1.0 - probability)", ""),
    ("dropout that keeps what it should drop", "ops/dropout.py", "(hidden) >=", "(hidden) <"),
    ("eps outside the root", plain("rms_norm"), "torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
        "1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps)"),
    ("an rms norm that centres", plain("rms_norm"),
        "wide.square().mean(-1, keepdim=True", "wide.var(-1, keepdim=True, correction=0"),
    ("a layer norm without its bias", plain("layer_norm"), "normed * weight + bias", "normed * weight"),
    ("a layer norm that does not centre", plain("layer_norm"), "wide - wide.mean(-1, keepdim=True)", "wide"),
    ("a layer norm without its bias, fast", fast("layer_norm"), "weight, bias,", "weight, None,"),
    ("a norm in half precision", ("ops/norm.py", "ops/test_precision.py"),
        "= hidden.to(torch.promote_types(hidden.dtype, torch.float32))\n    inverse_rms", "= hidden\n    inverse_rms"),
    ("a layer norm in half precision", ("ops/norm.py", "ops/test_precision.py"),
        "= hidden.to(torch.promote_types(hidden.dtype, torch.float32))\n    centred", "= hidden\n    centred"),
    ("a wrong RoPE sign", plain("rotary"), "first * cos - second * sin", "first * cos + second * sin"),
    ("adjacent elements rotated instead of halves", plain("rotary"), ".chunk(2, -", ".unflatten(-1, (-1, 2)).unbind(-"),
    ("frequencies that grow", plain("rotary_tables"), "= theta ** (-pairs", "= theta ** (pairs"),
    ("frequencies of which the fast ones are scaled", plain("rotary_tables"),
        "share + (1 - share) / scaling", "(1 - share) + share / scaling"),
    ("cosines for sines", plain("rotary_tables"), "angles.sin()).to(dtype)", "angles.cos()).to(dtype)"),
    ("sines and cosines exchanged", plain("sinusoidal"), "angles.sin(), angles.cos()", "angles.cos(), angles.sin()"),
    ("positions that begin at one", plain("token_positions"), "cumsum(-1) - 1", "cumsum(-1)"),
    ("positions that count padding", plain("token_positions"), "mask.long().", "torch.ones_like(mask).long()."),
    ("angles in half precision", ("ops/positions.py", "ops/test_precision.py"),
        "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype"),
    ("the row of another token", plain("embedding"), "(ids, weight)", "(ids.flip(-1), weight)"),
    ("a linear layer without its bias", plain("linear"), "weight, bias", "weight"),
    ("a relu of the negated input", plain("relu"), "torch.relu(up)", "torch.relu(-up)"),
    ("a gelu with a square for its cube", plain("gelu"),
        "up**3", "up**2"),
    ("GELU by the error function", fast("gelu"), '(up, approximate="tanh")', "(up)"),
    ("gate and up exchanged", plain("swiglu"), "gate * torch.sigmoid(gate) * up", "up * torch.sigmoid(up) * gate"),
    ("gate and up exchanged, fast", fast("swiglu"), "return F.silu(gate) * up", "return F.silu(up) * gate"),
    ("a gradient of the gate without the factor up", fast("swiglu"), "gradients[0] * up, gate", "gradients[0], gate"),
    ("a frozen matrix that saves its input", "fast/linear.py", "x if ctx.needs_input_grad[1] else None", "x"),
    ("a gradient with its sign flipped", "fast/linear.py", "gradient,", "-gradient,"),
    ("an unscaled dW", plain("lora"), "scale * linear(low, b)", "linear(low, b)"),
    ("an A that multiplies x without dropout", plain("lora"), "x if dropped is None else dropped", "x"),
    ("an unscaled dW, fast", fast("lora"), ".mul_(scale)", ""),
    ("an unscaled gradient of A", fast("lora"), "(gradient @ b).mul_(ctx.scale)", "gradient @ b"),
    ("an input gradient from the frozen matrix alone", fast("lora"), ".addmm_(shared, a)", ""),
    ("a row without an adapter that gets the last one", plain("lora_by_row"),
        "return F.pad(side, (0, 0, 0, 0, 0, 1))", "return side"),
    ("an update with its sign flipped", fast("lora_by_row"), "x @ a.mT, b", "x @ a.mT, -b"),
    ("a norm with half of its mixed term", plain("updated_norms"), "2 * scale *", "scale *"),
    ("a loss over padding", plain("linear_cross_entropy"), "labelled = labels !=", "labelled = labels >= 2 *"),
    ("a mean of means", plain("linear_cross_entropy"), "labels[labelled, None]).sum(", "labels[labelled, None]).mean("),
    ("a loss over padding, fast", fast("linear_cross_entropy"), "labelled = labels !=", "labelled = labels >= 2 *"),
    ("a mean of means, fast", fast("linear_cross_entropy"), "labels[:, None]).sum(", "labels[:, None]).mean("),
    ("a loss in half precision", LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    ("a loss in half precision, fast", FAST_LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    ("logits that are all saved", FAST_LOSS, "<= FEW", "<= 1e9 * FEW"),
    ("a softmax over the wrong axis", plain("softmax"), "torch.softmax(scores, -1)", "torch.softmax(scores, 0)"),
    ("a log-softmax over the wrong axis", plain("log_softmax"), ".log_softmax(scores, -1)", ".log_softmax(scores, 0)"),
    ("a logarithm of a rounded softmax", ("ops/softmax.py", "ops/test_precision.py"),
        "torch.log_softmax(scores, -1)", "torch.softmax(scores, -1).log()"),
    ("a merge with its sign flipped", ("adapt/lora.py", CHECK), "self.scale * self.b", "-self.scale * self.b"),
    ("a saved adapter with its sign flipped", ("adapt/method.py", CHECK), "(state[name])", "(-state[name])"),
    ("a cache of which only the last token is used", ("generation.py", CHECK),
        ", : self.length], self.value[:, :, : self.length", ", now : self.length], self.value[:, :, now : self.length"),
    ("blocks recomputed by another backend", ("decoder.py", "test_choice.py"),
        "checkpoint(ops.bound(self.blocks[index]),", "checkpoint(self.blocks[index],"),
    ("a backend that all threads share", ("operations.py", "test_choice.py"), "(threading.local)", ""),
    ("heads without their norm", DECODER, "= self.query_norm(query), self.key_norm(key)", "= query, key"),
    ("rotary positions in every layer", DECODER, "None if index in self.config.unrotated_layers else rotation",
        "rotation"),
    ("keys that are not rotated", DECODER, "rotary(key, *rotation)", "key"),
    ("embeddings that are not scaled", DECODER, "* math.sqrt(config.width) + ops", "+ ops"),
    ("a prompt that does not count as positions", POSITIONS, "len(prefix) if prefix is not None else 0", "0"),
    ("a prefix for the first layer alone", DECODER, "prefix.layer(index)", "prefix.layer(0)"),
    ("a residual that is dropped", DECODER, "return hidden + self.feed_forward", "return self.feed_forward"),
    ("one norm in both places", DECODER, "(self.feed_forward_norm(hidden))", "(self.attention_norm(hidden))"),
    ("a norm before the residual is added", DECODER,
        "self.feed_forward_norm(hidden + self.feed_forward", "hidden + self.feed_forward_norm(self.feed_forward"),
    ("no last norm", DECODER, "self.norm(hidden)", "hidden"),
    ("a mask that does not reach the blocks", DECODER, "rotation, mask,", "rotation, None,"),
    ("a head that is not tied", LAWS, "self.head.weight = self.embed.weight", "pass"),
    ("an initialisation that ignores the depth", LAWS, "0.02 / math.sqrt(2 * self.config.layers)", "0.02"),
    ("dropout at evaluation", LAWS, "(inner), self.dropout if self.training else 0.0", "(inner), self.dropout"),
    ("weights dropped at evaluation", LAWS, "p = self.dropout if self.training else 0.0", "p = self.dropout"),
    ("greedy top-p", ("generation.py", "reference/test_sampling.py"), "cumsum(-1) - ordered >", "cumsum(-1) >"),
    ("an adapter that loads onto any base", FILES, "in {**here, **there} if here.get(name) != there.get(name)",
        "in {**here, **there} if name not in here or name not in there"),
    ("a base with another rope_theta accepted", DESCRIBED, '"rope_theta", "norm_eps"', '"norm_eps"'),
    ("flipped bits in an adapter accepted", FILES, "if tensor_fingerprint(stored) != expected", "if expected is None"),
    ("a model's declared ends ignored", ("hub/huggingface_tokenizer.py", "hub/test_huggingface_tokenizer.py"),
        "chosen), ends)", "chosen))"),
    ("the start of Llama 3 in GGUF left out", ("hub/gguf_tokenizer.py", "hub/test_gguf_tokenizer.py"),
        'default = pieces or kind == "llama-bpe"', "default = pieces"),
    ("non-finite numbers saved", SAVED, 'check_finite(state, "the method")', "pass"),
    ("an adapter without effect accepted", FILES, "if found.size == 0 and not allow_noop:", "if False:"),
    ("another tokenizer accepted", FILES, "not in (None, tokenizer.fingerprint)", "is False"),
    ("a delta against a base that was cast after loading", FILES, ".loaded[stored]", ".present[name].detach().cpu()"),
    ("the original dtype of the base ignored", FILES, "weight.to(base_dtype).to(dtype)", "weight.to(dtype)"),
    ("an edited adapter.json accepted", SEALED, "if not intact:", "if False:"),
    ("a duplicate name in adapter.json", SEALED, "if len(found) != len(pairs):", "if False:"),
    ("an open quote that takes other rows in", "data/tables.py", ", strict=True), 0", "), 0"),
    ("rows of any length", "data/tables.py", "if len(values) != len(columns):", "if False:"),
    ("numbers in the order of strings", "data/table_tasks.py", "found.sort(key=float)", "found.sort()"),
    ("labels of two types", "data/table_tasks.py", "if kind != first:", "if False:"),
    ("parts without their share of each class", ("data/tasks.py", "data/test_table_tasks.py"),
        "sorted(ranked, key=lambda ranked: ranked[0])", "ranked"),
    ("a temperature that overflows", "generation.py", "(logits - highest) / max(", "logits / max("),
    ("a truncated delta accepted", "runtime/delta.py", " or not unpacker.eof", ""),
    ("trailing bytes after a delta", "runtime/delta.py", " or unpacker.unused_data", ""),
    ("a decompression bomb", "runtime/delta.py", "().data, size + 1", "().data"),
    ("bytes that are not sorted by significance", "runtime/delta.py",
        "difference.reshape(-1, tensor.element_size()).T", "difference.reshape(tensor.element_size(), -1)"),
    ("a base not recognised after a cast", FINGERPRINT, "for dtype in CASTS:", "for dtype in [tensor.dtype]:"),
    ("a changed weight not detected", FINGERPRINT, " {zlib.crc32(tensor_bytes(tensor).data):08x}", ""),
    ("a cache of other weights accepted", FINGERPRINT, 'cached["files"] == stamp else {}', "stamp else {}"),
    ("a cast accepted as the weights of the file", FINGERPRINT, "    _read_from_file(source)\n", ""),
    ("layers with and without rotary positions exchanged", FAMILY, "if not flag", "if flag"),
    ("YaRN without its attention factor", FAMILY, "over_all else scale(1.0)", "over_all else 1.0"),
    ("Qwen's rows in the order of a Llama", ("hub/gguf.py", "hub/test_llama_cpp.py"), "    interleaved={},\n", ""),
    ("a prefix under a window exported to peft", ("hub/peft.py", FAMILY[1]),
        "config.window is not None and", "False and"),
    ("a hard prompt that no window passes over", ("adapt/in_context.py", WINDOWED.format("in context")),
        "windowed=True", "windowed=False"),
    ("a soft prompt that no window passes over", ("decoder.py", WINDOWED.format("soft prompt, of words")),
        "torch.stack(values), windowed=True", "torch.stack(values), windowed=False"),
    ("layers and sides exchanged in peft's prefix", PEFT, "P K -> P (L sides G K)", "P K -> P (sides L G K)"),
    ("a gate that peft lacks", PEFT, 'if "gate" in state:', "if False:"),
    ("unshifted positions that peft lacks", PEFT, "if not method.shift_positions:", "if False:"),
    ("an alpha that forgets the root of the rank", PEFT_LORA, "math.sqrt(rank) if stabilised else ", ""),
    ("A and B of an embedding exchanged for peft", PEFT_LORA,
        '{"b": "lora_embedding_A", "a": "lora_embedding_B"}', '{"a": "lora_embedding_A", "b": "lora_embedding_B"}'),
    ("a rank that the pattern does not give", PEFT_LORA, 'if rank != len(factors["a"]):', "if rank is None:"),
    ("another base accepted for a peft adapter", PEFT_LORA,
        "if not torch.equal(tensor.to(matrix.weight), matrix.weight):", "if False:"),
    ("a user-defined token exported as control", GGUF_TOKENIZER, "else USER_DEFINED", "else CONTROL"),
    ("an exported byte token of another type", GGUF_TOKENIZER, "BYTE if token in BYTES", "NORMAL if token in BYTES"),
    ("merges that SentencePiece would also make", GGUF_PIECES, "if (left, right) not in present:", "if False:"),
    ("scores that rise in the order of the merges", (GGUF_PIECES[0], GGUF_TOKENIZER[1]),
        "else -float(len(scores))", "else float(len(scores))"),
    ("a first space that is not added", GGUF_PIECES, "if space else replace\n", "if not space else replace\n"),
    ("a scale that llama.cpp does not know", GGUF_LORA, "matrix.scale * len(a) / method.alpha * b", "b"),
    ("columns of B in the place of others", GGUF_LORA, "start += b.shape[1]", "start += 0"),
    ("an exported bos that is always added", GGUF_TOKENIZER, "add_add_bos_token(tokenizer.starts_with_bos)",
     "add_add_bos_token(tokenizer.bos is not None)"),
    ("the blocks of c_attn in reversed order", PEFT_LORA, ".block_diag(*rows)", ".block_diag(*reversed(rows))"),
    ("a cache without the last token", ACTIVATIONS, "states[: end + 1]", "states[:end]"),
    ("a stage above the norm", ACTIVATIONS, '"decoder.norm": layers,', '"decoder.norm": layers + 1,'),
    ("frozen layers that run every epoch", ACTIVATIONS, " if row not in self._rows", ""),
    ("a trained block that is left out", ACTIVATIONS, "start=self.start", "start=self.start + 1"),
    ("a write to frozen layers not detected", ACTIVATIONS, "tensor.dtype, tensor._version", "tensor.dtype"),
    ("a change of precision not detected", ACTIVATIONS, "half, *", "*"),
    ("a mean over padding", POOLING, "mask.to(hidden.dtype) /", "torch.ones_like(mask).to(hidden.dtype) /"),
    ("features of the block below", POOLING, "return self.layer + 1", "return self.layer"),
    ("a flipped bit accepted", STORE, 'if stored.get("sha256") != tensor_fingerprint(features):', "if False:"),
    ("a cache of another tokenizer accepted", STORE, '"tokenizer": tokenizer_fingerprint,', ""),
    ("features with dropout", STORE, "    decoder.eval()\n", ""),
    ("a loss without class weights", LOGISTIC, "each * F.cross_entropy", "F.cross_entropy"),
    ("labels of another piece", LOGISTIC, "*(other[piece].cpu()", "*(other[: len(features[piece])].cpu()"),
    ("a fit that continues from the last one", LOGISTIC, "torch.zeros(side.shape)", "side.detach().clone()"),
    ("a penalty on W of the plain features", LOGISTIC, "plain = weight / spread", "plain = weight"),
    ("a final norm without its bias", FINE_TUNE, '["norm.*"]', '["norm.weight"]'),
    ("classes in another order", FINE_TUNE, "rows[tokens]", "rows[sorted(tokens)]"),
    ("a learning rate without a schedule", LOOP,
        "rate_at(done, self.steps, self.settings)", "self.settings.learning_rate"),
    ("an optimizer step with a non-finite loss", LOOP, "if not math.isfinite(loss):", "if False:"),
    ("a learner that ignores the schedule", LEARNER, 'group["lr"] = rate', "pass"),
    ("numpy that does not clip", NUMPY, "clip_by_global_norm(self.gradients, self.settings.clip)", "self.gradients, 0"),
    ("numpy that predicts the token itself", NUMPY, "labels_BT[:, 1:]", "labels_BT[:, :-1]"),
    ("numpy that resumes at step 0", NUMPY, ', int(tensors["steps"])', ""),
    ("weight decay of norms", "reference/adamw.py", " if weight.ndim > 1 else 0.0", ""),
    ("an interrupted adapter that is lost", ("classifier.py", "adapters/test_commands.py"),
        "on_interrupt=lambda: on_trained(self)", "on_interrupt=lambda: None"),
]
# fmt: on
MUTATIONS = [mutation(*row) for row in _ROWS]
