"""Mutations of the arithmetic, which the tests must detect: `python -m pytest -m slow tests/test_mutations.py`.

A mutation is a small edit of a file of `minillm` (file, old text, new text), and the test that must fail because of it.
The old text occurs in the file exactly once. A change of an operation includes its mutations here.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    test: str


TILES = ("kernels/_attention_tiles.py", "kernels/test_attention.py")
KERNEL = ("kernels/attention.py", "kernels/test_attention.py")
BACKWARD = ("kernels/_attention_backward.py", "kernels/test_attention.py")
LOSS = ("ops/linear_cross_entropy.py", "fast/test_linear_cross_entropy.py")
FAST_LOSS = ("fast/linear_cross_entropy.py", LOSS[1])
DECODER = ("decoder.py", "reference/test_decoder.py")
LAWS = ("decoder.py", "test_decoder.py")
FILES = ("adapters/load.py", "adapters/test_load.py")
SAVED = ("adapt/method.py", "adapters/test_load.py")
DESCRIBED = ("adapt/description.py", "adapters/test_load.py")
FINGERPRINT = ("runtime/fingerprint.py", "runtime/test_fingerprint.py")
ACTIVATIONS = ("training/activation_cache.py", "training/test_activation_cache.py")
POOLING = ("adapt/frozen_head.py", "training/test_feature_cache.py")
STORE = ("training/feature_cache.py", "training/test_feature_cache.py")
HEADS = ("adapt/heads.py", "adapt/test_heads.py")
FINE_TUNE = ("adapt/fine_tune.py", "adapt/test_fine_tune.py")
LOOP = ("training/loop.py", "training/test_loop.py")
LEARNER = ("training/learners.py", "training/test_numpy_learner.py")
NUMPY = ("training/numpy_learner.py", "training/test_numpy_learner.py")
PEFT = ("hub/peft.py", "hub/test_peft.py")
PEFT_LORA = ("hub/peft_lora.py", "hub/test_peft.py")


def mutation(what, where, old, new):
    """`where` is the file that is changed, and the test that must fail."""
    return Mutation(what, where[0], old, new, where[1])


FLOAT64, RATIO = "test_torch_equals_numpy_in_float64", "test_the_fast_form_is_as_near_to_numpy_as_the_formula"
CHECK = "lab/test_check.py::test_every_operation_and_every_kind_of_decoder_is_on_every_rung_and_good"


def _suite(name, file, changes, test=FLOAT64):
    """Mutations of one implementation of an operation, which its cell of `test_operations.py` must detect."""
    by = "" if test == RATIO else "-fast" if file.startswith("fast/") else "-plain"
    cell = f"test_operations.py::{test}[{name}{by}]"
    return [Mutation(what, file, old, new, cell) for what, (old, new) in changes.items()]


# fmt: off
MUTATIONS = [
    mutation("a transposed head", DECODER, '"B T (heads K) -> B heads T K"', '"B T (K heads) -> B heads T K"'),
    mutation("heads merged in the wrong order", DECODER, '"B H T K -> B T (H K)"', '"B H T K -> B T (K H)"'),
    *_suite("attention", "ops/attention.py", {
        "a query that uses another group's keys": (
            "side.repeat_interleave(heads // side.shape[1], 1)", "side.repeat(1, heads // side.shape[1], 1, 1)"),
        "a missing scale": (" / math.sqrt(query.shape[-1])", ""),
        "a prefix hidden by the mask": ("value=True", "value=False"),
        "a prefix after the text": ("zip(before, (key, value), strict=True)", "zip((key, value), before, strict=True)"),
        "a gate without its tanh": ("prefix.gate.tanh()", "prefix.gate"),
    }),
    *_suite("visible_keys", "ops/attention.py", {
        "a mask that shows the next token": (".tril(keys - queries)", ".tril(keys - queries + 1)"),
        "a mask that hides the token itself": (".tril(keys - queries)", ".tril(keys - queries - 1)"),
        "a mask aligned at the start": (".tril(keys - queries)", ".tril(0)"),
        "padding that attends to nothing": ("causal & mask[:, None] | itself", "causal & mask[:, None]"),
        "padding that is attended to": ("causal & mask[:, None] | itself", "causal | itself"),
    }),
    *_suite("attention", "fast/attention.py", {
        "a missing scale, fast": ("is_causal=square,", "is_causal=square, scale=1.0,"),
        "a gate without its tanh, fast": ("prefix.gate.tanh()", "prefix.gate"),
    }),
    *_suite("attention", "fast/attention.py", {
        "a query that uses another group's keys, in bfloat16": ("B (G group) T K -> B G", "B (group G) T K -> B G"),
        "a missing scale, in bfloat16": (" / math.sqrt(query.shape[-1])", ""),
    }, RATIO),
    mutation("dropout that forgets attention", ("fast/attention.py", "ops/test_attention.py"),
        "dropout_p=dropout_probability", "dropout_p=0 * dropout_probability"),
    mutation("a kernel that shows the next token", TILES, "<= last[:, None]", "<= last[:, None] + 1"),
    mutation("a kernel in which padding attends to nothing", TILES, " | (key[None, :] == last[:, None])", ""),
    mutation("a stack of queries in another order", TILES, "row % GROUP * stride_h", "row % 2 * stride_h"),
    mutation("a sum that is not rescaled", KERNEL, "total * rescale", "total"),
    mutation("a prefix without its last key", KERNEL, "(BLOCK_T,), prompt - 1", "(BLOCK_T,), prompt - 2"),
    mutation("gradients of queries without their delta", BACKWARD, " - delta[:, None]", ""),
    mutation("gradients of padding that are not zeroed", BACKWARD,
        "dk, dv = tl.where(real[:, None], dk, 0.0), tl.where(real[:, None], dv, 0.0)", "pass"),
    mutation("a prefix trained on the first row alone", BACKWARD, "b + step // tiles", "b"),
    mutation("half of the queries after a key", BACKWARD, "end = tiles\n", "end = (start + tiles + 1) // 2\n"),
    *_suite("dropout", "ops/dropout.py", {"a dropped 1 / (1 - p)": (" / (1.0 - probability)", "")}),
    mutation("dropout that keeps what it should drop", ("ops/dropout.py", "ops/test_dropout.py"),
        "torch.rand_like(hidden) >= probability", "torch.rand_like(hidden) < probability"),
    *_suite("rms_norm", "ops/norm.py", {
        "eps outside the root": ("torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
            "1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps)"),
        "an rms norm that centres": ("wide.square().mean(-1, keepdim=True", "wide.var(-1, keepdim=True, correction=0"),
    }),
    *_suite("layer_norm", "ops/norm.py", {
        "a layer norm without its bias": ("normed * weight + bias", "normed * weight"),
        "a layer norm that does not centre": ("wide - wide.mean(-1, keepdim=True)", "wide"),
    }),
    *_suite("layer_norm", "fast/norm.py", {"a layer norm without its bias, fast": ("weight, bias,", "weight, None,")}),
    mutation("a norm in half precision", ("ops/norm.py", "ops/test_norm.py"),
        "= hidden.to(torch.promote_types(hidden.dtype, torch.float32))\n    inverse_rms", "= hidden\n    inverse_rms"),
    mutation("a layer norm in half precision", ("ops/norm.py", "ops/test_norm.py"),
        "= hidden.to(torch.promote_types(hidden.dtype, torch.float32))\n    centred", "= hidden\n    centred"),
    *_suite("rotary", "ops/positions.py", {
        "a wrong RoPE sign": ("first * cos - second * sin", "first * cos + second * sin"),
        "adjacent elements rotated instead of halves": (".chunk(2, -1)", ".unflatten(-1, (-1, 2)).unbind(-1)"),
    }),
    *_suite("rotary_tables", "ops/positions.py", {
        "frequencies that grow": ("theta ** (-pairs / width)", "theta ** (pairs / width)"),
        "cosines for sines": ("angles.sin().to(dtype)", "angles.cos().to(dtype)"),
    }),
    *_suite("sinusoidal", "ops/positions.py", {
        "sines and cosines exchanged": ("(angles.sin(), angles.cos())", "(angles.cos(), angles.sin())"),
    }),
    *_suite("token_positions", "ops/positions.py", {
        "positions that begin at one": ("cumsum(-1) - 1", "cumsum(-1)"),
        "positions that count padding": ("mask.long().cumsum", "torch.ones_like(mask).long().cumsum"),
    }),
    mutation("angles in half precision", ("ops/positions.py", "ops/test_positions.py"),
        "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype"),
    *_suite("embedding", "ops/embedding.py", {"the row of another token": ("(ids, weight)", "(ids.flip(-1), weight)")}),
    *_suite("linear", "ops/linear.py", {"a linear layer without its bias": ("weight, bias", "weight")}),
    *_suite("relu", "ops/feed_forward.py", {"a relu of the negated input": ("torch.relu(up)", "torch.relu(-up)")}),
    *_suite("gelu", "ops/feed_forward.py", {"a gelu with a square for its cube": ("up**3", "up**2")}),
    *_suite("gelu", "fast/feed_forward.py", {"GELU by the error function": ('(up, approximate="tanh")', "(up)")}),
    *_suite("swiglu", "ops/feed_forward.py", {
        "gate and up exchanged": ("gate * torch.sigmoid(gate) * up", "up * torch.sigmoid(up) * gate"),
    }),
    *_suite("swiglu", "fast/feed_forward.py", {
        "gate and up exchanged, fast": ("return F.silu(gate) * up", "return F.silu(up) * gate"),
        "a gradient of the gate without the factor up": ("(gradients[0] * up, gate)", "(gradients[0], gate)"),
    }),
    mutation("a frozen matrix that saves its input", ("fast/linear.py", "fast/test_linear.py"),
        "x if ctx.needs_input_grad[1] else None", "x"),
    mutation("a gradient with its sign flipped", ("fast/linear.py", "fast/test_linear.py"),
        "_product(gradient, weight.T)", "_product(-gradient, weight.T)"),
    *_suite("lora", "ops/lora.py", {
        "an unscaled dW": ("scale * linear(low, b)", "linear(low, b)"),
        "an A that multiplies x without dropout": ("x if dropped is None else dropped", "x"),
    }),
    *_suite("lora", "fast/lora.py", {
        "an unscaled dW, fast": (".mul_(scale)", ""),
        "an unscaled gradient of A": ("(gradient @ b).mul_(ctx.scale)", "gradient @ b"),
        "an input gradient from the frozen matrix alone": (".addmm_(shared, a)", ""),
    }),
    *_suite("lora_by_row", "ops/lora_by_row.py", {
        "a row without an adapter that gets the last one": ("return F.pad(side, (0, 0, 0, 0, 0, 1))", "return side"),
    }),
    *_suite("lora_by_row", "fast/lora_by_row.py", {"an update with its sign flipped": ("x @ a.mT, b", "x @ a.mT, -b")}),
    *_suite("updated_norms", "ops/dora.py", {"a norm with half of its mixed term": ("2 * scale *", "scale *")}),
    *_suite("linear_cross_entropy", "ops/linear_cross_entropy.py", {
        "a loss over padding": ("labelled = labels != IGNORED", "labelled = labels >= 2 * IGNORED"),
        "a mean of means": ("labels[labelled, None]).sum(", "labels[labelled, None]).mean("),
    }),
    *_suite("linear_cross_entropy", "fast/linear_cross_entropy.py", {
        "a loss over padding, fast": ("labelled = labels != IGNORED", "labelled = labels >= 2 * IGNORED"),
        "a mean of means, fast": ("labels[:, None]).sum(", "labels[:, None]).mean("),
    }),
    mutation("a loss in half precision", LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    mutation("a loss in half precision, fast", FAST_LOSS,
        "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    mutation("logits that are all saved", FAST_LOSS, "<= FEW", "<= 1e9 * FEW"),
    *_suite("softmax", "ops/softmax.py", {
        "a softmax over the wrong axis": ("torch.softmax(scores, -1)", "torch.softmax(scores, 0)"),
    }),
    *_suite("log_softmax", "ops/softmax.py", {
        "a log-softmax over the wrong axis": ("torch.log_softmax(scores, -1)", "torch.log_softmax(scores, 0)"),
    }),
    mutation("a logarithm of a rounded softmax", ("ops/softmax.py", "ops/test_softmax.py"),
        "torch.log_softmax(scores, -1)", "torch.softmax(scores, -1).log()"),
    mutation("a merge with its sign flipped", ("adapt/lora.py", CHECK), "self.scale * self.b", "-self.scale * self.b"),
    mutation("a saved adapter with its sign flipped", ("adapt/method.py", CHECK), "(state[name])", "(-state[name])"),
    mutation("a cache of which only the last token is used", ("generation.py", CHECK),
        ", : self.length], self.value[:, :, : self.length", ", now : self.length], self.value[:, :, now : self.length"),
    mutation("blocks recomputed by another backend", ("decoder.py", "test_choice.py"),
        "checkpoint(ops.bound(self.blocks[index]),", "checkpoint(self.blocks[index],"),
    mutation("a backend that all threads share", ("operations.py", "test_choice.py"), "(threading.local)", ""),
    mutation("keys that are not rotated", DECODER, "rotary(key, *rotation)", "key"),
    mutation("embeddings that are not scaled", DECODER, "* math.sqrt(config.width) + ops", "+ ops"),
    mutation("a prompt that does not count as positions", DECODER, "len(prefix) if prefix is not None else 0", "0"),
    mutation("a prefix for the first layer alone", DECODER, "prefix.layer(index)", "prefix.layer(0)"),
    mutation("a residual that is dropped", DECODER, "return hidden + self.feed_forward", "return self.feed_forward"),
    mutation("one norm in both places", DECODER, "(self.feed_forward_norm(hidden))", "(self.attention_norm(hidden))"),
    mutation("a norm before the residual is added", DECODER,
        "self.feed_forward_norm(hidden + self.feed_forward", "hidden + self.feed_forward_norm(self.feed_forward"),
    mutation("no last norm", DECODER, "self.norm(hidden)", "hidden"),
    mutation("a mask that does not reach the blocks", DECODER, "rotation, mask,", "rotation, None,"),
    mutation("a head that is not tied", LAWS, "self.head.weight = self.embed.weight", "pass"),
    mutation("an initialisation that ignores the depth", LAWS, "0.02 / math.sqrt(2 * self.config.layers)", "0.02"),
    mutation("dropout at evaluation", LAWS, "(inner), self.dropout if self.training else 0.0", "(inner), self.dropout"),
    mutation("weights dropped at evaluation", LAWS, "p = self.dropout if self.training else 0.0", "p = self.dropout"),
    mutation("greedy top-p", ("generation.py", "reference/test_sampling.py"), "cumsum(-1) - ordered >", "cumsum(-1) >"),
    mutation("an adapter that loads onto any base", FILES, "in {**here, **there} if here.get(name) != there.get(name)",
        "in {**here, **there} if name not in here or name not in there"),
    mutation("a base with another rope_theta accepted", DESCRIBED, '"rope_theta", "norm_eps"', '"norm_eps"'),
    mutation("flipped bits in an adapter accepted", FILES,
        "if tensor_fingerprint(stored) != expected:", "if expected is None:"),
    mutation("non-finite numbers saved", SAVED, 'check_finite(state, "the method")', "pass"),
    mutation("an adapter without effect accepted", FILES, "if found.size == 0 and not allow_noop:", "if False:"),
    mutation("another tokenizer accepted", FILES, "not in (None, tokenizer.fingerprint)", "is False"),
    mutation("a delta against a base that was cast after loading", FILES,
        "yield self.loaded[stored]", "yield self.present[name].detach().cpu()"),
    mutation("the original dtype of the base ignored", FILES, "weight.to(base_dtype).to(dtype)", "weight.to(dtype)"),
    mutation("an edited adapter.json accepted", ("adapt/description.py", "adapt/test_description.py"),
        "if description.seal() != seal:", "if False:"),
    mutation("a duplicate name in adapter.json", ("adapt/description.py", "adapt/test_description.py"),
        "if len(found) != len(pairs):", "if False:"),
    mutation("a truncated delta accepted", ("runtime/delta.py", "runtime/test_delta.py"), " or not unpacker.eof", ""),
    mutation("trailing bytes after a delta", ("runtime/delta.py", "runtime/test_delta.py"),
        " or unpacker.unused_data", ""),
    mutation("a decompression bomb", ("runtime/delta.py", "runtime/test_delta.py"), "().data, size + 1", "().data"),
    mutation("bytes that are not sorted by significance", ("runtime/delta.py", "runtime/test_delta.py"),
        "difference.reshape(-1, tensor.element_size()).T", "difference.reshape(tensor.element_size(), -1)"),
    mutation("a base not recognised after a cast", FINGERPRINT, "for dtype in CASTS:", "for dtype in [tensor.dtype]:"),
    mutation("a changed weight not detected", FINGERPRINT, " {zlib.crc32(_bytes(tensor)):08x}", ""),
    mutation("a cache of other weights accepted", FINGERPRINT, 'cached["files"] == stamp else {}', "stamp else {}"),
    mutation("a cast accepted as the weights of the file", FINGERPRINT, "source.read is not None and", "False and"),
    mutation("layers and sides exchanged in peft's prefix", PEFT, "P K -> P (L sides G K)", "P K -> P (sides L G K)"),
    mutation("a gate that peft lacks", PEFT, 'if "gate" in state:', "if False:"),
    mutation("unshifted positions that peft lacks", PEFT, "if not method.shift_positions:", "if False:"),
    mutation("an alpha that forgets the root of the rank", PEFT_LORA, "math.sqrt(rank) if stabilised else ", ""),
    mutation("A and B of an embedding exchanged for peft", PEFT_LORA,
        '{"b": "lora_embedding_A", "a": "lora_embedding_B"}', '{"a": "lora_embedding_A", "b": "lora_embedding_B"}'),
    mutation("a rank that the pattern does not give", PEFT_LORA, 'if rank != len(factors["a"]):', "if rank is None:"),
    mutation("another base accepted for a peft adapter", PEFT_LORA,
        "if not torch.equal(tensor.to(matrix.weight), matrix.weight):", "if False:"),
    mutation("the blocks of c_attn in reversed order", PEFT_LORA, ".block_diag(*rows)", ".block_diag(*reversed(rows))"),
    mutation("a cache without the last token", ACTIVATIONS, "real = states[: end + 1]", "real = states[:end]"),
    mutation("a stage above the norm", ACTIVATIONS, '"decoder.norm": layers,', '"decoder.norm": layers + 1,'),
    mutation("frozen layers that run every epoch", ACTIVATIONS, " if row not in self._rows", ""),
    mutation("a trained block that is left out", ACTIVATIONS, "start=self.start", "start=self.start + 1"),
    mutation("a write to frozen layers not detected", ACTIVATIONS, "tensor.dtype, tensor._version", "tensor.dtype"),
    mutation("a change of precision not detected", ACTIVATIONS, "half, *", "*"),
    mutation("states that overlap in their file", ACTIVATIONS, "self.chunk[needed:]", "self.chunk[needed // 2 :]"),
    mutation("a mean over padding", POOLING, "mask.to(hidden.dtype) /", "torch.ones_like(mask).to(hidden.dtype) /"),
    mutation("features of the block below", POOLING, "return self.layer + 1", "return self.layer"),
    mutation("a flipped bit accepted", STORE, 'if stored.get("sha256") != tensor_fingerprint(features):', "if False:"),
    mutation("a cache of another tokenizer accepted", STORE, '"tokenizer": tokenizer_fingerprint,', ""),
    mutation("features with dropout", STORE, "    decoder.eval()\n", ""),
    mutation("a ridge without class weights", HEADS, "(weight[:, None] * centred)", "centred"),
    mutation("a ridge without a bias", HEADS, "centred = rows - rows_mean", "centred = rows"),
    mutation("a loss without class weights", HEADS, "weight * F.cross_entropy", "F.cross_entropy"),
    mutation("labels of another shard", HEADS, "start += len(rows)", "start += 0"),
    mutation("a fit that continues from the last one", HEADS, "    exact.reset()\n", ""),
    mutation("the farthest neighbours", HEADS, ", largest=False", ""),
    mutation("a bias for standardised features", HEADS, "self.bias.sub_", "self.bias.add_"),
    mutation("a final norm without its bias", FINE_TUNE, '["norm.*"]', '["norm.weight"]'),
    mutation("classes in another order", FINE_TUNE, "rows[tokens]", "rows[sorted(tokens)]"),
    mutation("a learning rate without a schedule", LOOP,
        "rate_at(done, self.steps, self.settings)", "self.settings.learning_rate"),
    mutation("an optimizer step with a non-finite loss", LOOP, "if not math.isfinite(loss):", "if False:"),
    mutation("a learner that ignores the schedule", LEARNER, 'group["lr"] = rate', "pass"),
    mutation("numpy that does not clip", NUMPY,
        "clip_by_global_norm(self.gradients, self.settings.clip)", "self.gradients, 0"),
    mutation("numpy that predicts the token itself", NUMPY, "labels_BT[:, 1:]", "labels_BT[:, :-1]"),
    mutation("numpy that resumes at step 0", NUMPY, ', int(tensors["steps"])', ""),
    mutation("weight decay of norms", ("reference/adamw.py", "reference/test_adamw.py"),
        "rate * decay if weight.ndim > 1 else 0.0", "rate * decay"),
    mutation("an interrupted adapter that is lost", ("classifier.py", "adapters/test_commands.py"),
        "on_interrupt=lambda: on_trained(self)", "on_interrupt=lambda: None"),
]
# fmt: on
