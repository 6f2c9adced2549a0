"""Ways to break the arithmetic, all of which the tests must notice: `python -m pytest -m slow tests/test_mutations.py`.

A mutation is a small edit of a file of `minillm`: (file, old text, new text), and the test file that has to fail for
it. The old text stands in the file exactly once. Who changes an operation updates its mutations here.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    test: str


ATTENTION = ("ops/attention.py", "ops/test_attention.py")
TILES = ("kernels/_attention_tiles.py", "kernels/test_attention.py")
KERNEL = ("kernels/attention.py", "kernels/test_attention.py")
BACKWARD = ("kernels/_attention_backward.py", "kernels/test_attention.py")
POSITIONS = ("ops/positions.py", "ops/test_positions.py")
LOSS = ("ops/linear_cross_entropy.py", "ops/test_linear_cross_entropy.py")
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
    """`where` is the file that is broken, and the test that has to notice it."""
    file, test = where
    return Mutation(what, file, old, new, test)


MUTATIONS = [
    mutation(
        "a transposed head",
        DECODER,
        '"B T (heads K) -> B heads T K"',
        '"B T (K heads) -> B heads T K"',
    ),
    mutation("heads merged in the wrong order", DECODER, '"B H T K -> B T (H K)"', '"B H T K -> B T (K H)"'),
    mutation(
        "a query that reads another group's keys",
        ATTENTION,
        'stacked = rearrange(query, "B (G group) T K -> B G (group T) K"',
        'stacked = rearrange(query, "B (group G) T K -> B G (group T) K"',
    ),
    mutation("a missing scale, step by step", ATTENTION, " / math.sqrt(query.shape[-1])", ""),
    mutation("a missing scale, in the kernel", ATTENTION, "is_causal=square,", "is_causal=square, scale=1.0,"),
    mutation("a mask that shows the next token", ATTENTION, ".tril(keys - queries)", ".tril(keys - queries + 1)"),
    mutation("a mask that hides the token itself", ATTENTION, ".tril(keys - queries)", ".tril(keys - queries - 1)"),
    mutation("a mask aligned at the start", ATTENTION, ".tril(keys - queries)", ".tril(0)"),
    mutation("padding that sees nothing", ATTENTION, "causal & mask[:, None] | itself", "causal & mask[:, None]"),
    mutation("padding that is read", ATTENTION, "causal & mask[:, None] | itself", "causal | itself"),
    mutation("a prefix hidden by the mask", ATTENTION, "value=True", "value=False"),
    mutation(
        "a prefix after the text",
        ATTENTION,
        "zip(before, (key, value), strict=True)",
        "zip((key, value), before, strict=True)",
    ),
    mutation("a gate without its tanh", ATTENTION, "prefix.gate.tanh()", "prefix.gate"),
    mutation(
        "dropout that forgets attention",
        ATTENTION,
        "dropout_p=dropout_probability",
        "dropout_p=0 * dropout_probability",
    ),
    mutation(
        "a kernel that shows the next token",
        TILES,
        "tl.where(key[None, :] <= last[:, None]",
        "tl.where(key[None, :] <= last[:, None] + 1",
    ),
    mutation("a kernel in which padding sees nothing", TILES, " | (key[None, :] == last[:, None])", ""),
    mutation("a stack of queries in another order", TILES, "row % GROUP * stride_h", "row % 2 * stride_h"),
    mutation("a sum that does not fade", KERNEL, "total * faded", "total"),
    mutation("a prefix that is seen without its last key", KERNEL, "(BLOCK_T,), prompt - 1", "(BLOCK_T,), prompt - 2"),
    mutation("slopes of queries without their delta", BACKWARD, " - delta[:, None]", ""),
    mutation(
        "slopes of padding that are kept",
        BACKWARD,
        "dk, dv = tl.where(real[:, None], dk, 0.0), tl.where(real[:, None], dv, 0.0)",
        "pass",
    ),
    mutation("a prefix that learns from the first row alone", BACKWARD, "b + step // tiles", "b"),
    mutation(
        "half of the queries after a key", BACKWARD, "        end = tiles\n", "        end = (start + tiles + 1) // 2\n"
    ),
    mutation("a dropped 1 / (1 - p)", ("ops/dropout.py", "ops/test_dropout.py"), " / (1.0 - probability)", ""),
    mutation(
        "dropout that keeps what it should drop",
        ("ops/dropout.py", "ops/test_dropout.py"),
        "torch.rand_like(hidden) >= probability",
        "torch.rand_like(hidden) < probability",
    ),
    mutation(
        "eps outside the root",
        ("ops/norm.py", "ops/test_norm.py"),
        "torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
        "1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps)",
    ),
    mutation(
        "an rms norm that centres",
        ("ops/norm.py", "ops/test_norm.py"),
        "wide.square().mean(-1, keepdim=True)",
        "wide.var(-1, keepdim=True, correction=0)",
    ),
    mutation("a norm in half precision", ("ops/norm.py", "ops/test_norm.py"), "torch.float32", "torch.float16"),
    mutation(
        "a layer norm without its bias",
        ("ops/norm.py", "ops/test_norm.py"),
        "hidden, weight.shape, weight, bias, eps)",
        "hidden, weight.shape, weight, None, eps)",
    ),
    mutation(
        "add & norm that loses what is added",
        ("ops/norm.py", "ops/test_norm.py"),
        "return total, rms_norm(total, weight, eps)",
        "return total, rms_norm(hidden, weight, eps)",
    ),
    mutation("a wrong RoPE sign", POSITIONS, "first * cos - second * sin", "first * cos + second * sin"),
    mutation(
        "neighbours turned instead of halves",
        POSITIONS,
        "vectors.chunk(2, -1)",
        "vectors.unflatten(-1, (-1, 2)).unbind(-1)",
    ),
    mutation("frequencies that grow", POSITIONS, "theta ** (-pairs / width)", "theta ** (pairs / width)"),
    mutation("angles in half precision", POSITIONS, "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype"),
    mutation("sines and cosines exchanged", POSITIONS, "(angles.sin(), angles.cos())", "(angles.cos(), angles.sin())"),
    mutation("positions that begin at one", POSITIONS, "cumsum(-1) - 1)", "cumsum(-1))"),
    mutation("positions that count padding", POSITIONS, "mask.long().cumsum", "torch.ones_like(mask).long().cumsum"),
    mutation(
        "GELU by the error function",
        ("ops/feed_forward.py", "ops/test_feed_forward.py"),
        'F.gelu(up, approximate="tanh")',
        "F.gelu(up)",
    ),
    mutation(
        "a gate and what it gates exchanged",
        ("ops/feed_forward.py", "ops/test_feed_forward.py"),
        "F.silu(gate) * up",
        "F.silu(up) * gate",
    ),
    mutation(
        "a gate whose gradient forgets what it gates",
        ("ops/feed_forward.py", "ops/test_feed_forward.py"),
        "silu_backward(gradients[0] * up, gate)",
        "silu_backward(gradients[0], gate)",
    ),
    mutation(
        "a frozen matrix that keeps what it read",
        ("ops/linear.py", "ops/test_linear.py"),
        "x if ctx.needs_input_grad[1] else None",
        "x",
    ),
    mutation("an unscaled dW", ("ops/lora.py", "ops/test_lora.py"), ".mul_(scale)", ""),
    mutation(
        "an unscaled gradient of A",
        ("ops/lora.py", "ops/test_lora.py"),
        "(gradient @ b).mul_(ctx.scale)",
        "gradient @ b",
    ),
    mutation(
        "an input that learns from the frozen matrix alone",
        ("ops/lora.py", "ops/test_lora.py"),
        ".addmm_(shared, a)",
        "",
    ),
    mutation(
        "a row without an adapter that takes the last one",
        ("ops/lora.py", "ops/test_lora.py"),
        "(F.pad(side.to(dtype), (0, 0, 0, 0, 0, 1))[adapter] for",
        "(side.to(dtype)[adapter] for",
    ),
    mutation("a loss over padding", LOSS, "labelled = labels != IGNORED", "labelled = labels >= 2 * IGNORED"),
    mutation("a mean of means", LOSS, "labels[:, None]).sum()", "labels[:, None]).mean()"),
    mutation("a loss in half precision", LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    mutation(
        "a softmax over the wrong axis",
        ("ops/softmax.py", "ops/test_softmax.py"),
        "torch.softmax(scores, -1)",
        "torch.softmax(scores, 0)",
    ),
    mutation(
        "a logarithm of a rounded softmax",
        ("ops/softmax.py", "ops/test_softmax.py"),
        "torch.log_softmax(scores, -1)",
        "torch.softmax(scores, -1).log()",
    ),
    mutation("keys that are not turned", DECODER, "rotary(key, *rotation)", "key"),
    mutation("embeddings that are not scaled", DECODER, " * math.sqrt(config.width) + sin", " + sin"),
    mutation("a prompt that takes no positions", DECODER, "len(prefix) if prefix is not None else 0", "0"),
    mutation("a prefix for the first layer alone", DECODER, "prefix.layer(index)", "prefix.layer(0)"),
    mutation(
        "a residual that is dropped",
        DECODER,
        "return hidden + self._drop(self.feed_forward(normed))",
        "return self._drop(self.feed_forward(normed))",
    ),
    mutation(
        "one norm in both places",
        DECODER,
        "self.feed_forward_norm.add(hidden, read)",
        "self.attention_norm.add(hidden, read)",
    ),
    mutation("no last norm", DECODER, "self.norm(hidden)", "hidden"),
    mutation(
        "a mask that the blocks do not see", DECODER, "BlockInputs(rotation, mask,", "BlockInputs(rotation, None,"
    ),
    mutation("a head that is not tied", LAWS, "self.head.weight = self.embed.weight", "pass"),
    mutation("a depth that does not calm the start", LAWS, "0.02 / math.sqrt(2 * self.config.layers)", "0.02"),
    mutation(
        "dropout at evaluation",
        LAWS,
        "dropout(hidden, self.dropout if self.training else 0.0)",
        "dropout(hidden, self.dropout)",
    ),
    mutation(
        "greedy top-p",
        ("generation.py", "reference/test_sampling.py"),
        "ordered.cumsum(-1) - ordered >= top_p",
        "ordered.cumsum(-1) >= top_p",
    ),
    mutation(
        "an adapter that any base takes",
        FILES,
        "different = [name for name in {**here, **there} if here.get(name) != there.get(name)]",
        "different = [name for name in {**here, **there} if name not in here or name not in there]",
    ),
    mutation("a base with another rope_theta taken for its own", DESCRIBED, '"rope_theta", "norm_eps")', '"norm_eps")'),
    mutation("flipped bits in an adapter", FILES, "if tensor_fingerprint(stored) != expected:", "if expected is None:"),
    mutation("numbers that are not finite saved", SAVED, 'check_finite(state, "the method")', "pass"),
    mutation("an adapter that does nothing", FILES, "if found.size == 0 and not allow_noop:", "if False:"),
    mutation("another tokenizer", FILES, "not in (None, tokenizer.fingerprint)", "is False"),
    mutation(
        "a difference to a base that has been cast since",
        FILES,
        "yield self.loaded[stored]",
        "yield self.present[name].detach().cpu()",
    ),
    mutation(
        "the dtype that the base had forgotten",
        FILES,
        "decode(stored, weight.to(base_dtype).to(dtype))",
        "decode(stored, weight.to(dtype))",
    ),
    mutation(
        "an edited adapter.json",
        ("adapt/description.py", "adapt/test_description.py"),
        "if description.seal() != seal:",
        "if False:",
    ),
    mutation(
        "a name that stands twice in adapter.json",
        ("adapt/description.py", "adapt/test_description.py"),
        "if len(found) != len(pairs):",
        "if False:",
    ),
    mutation("a difference without its end", ("runtime/delta.py", "runtime/test_delta.py"), " or not unpacker.eof", ""),
    mutation(
        "something after a difference", ("runtime/delta.py", "runtime/test_delta.py"), " or unpacker.unused_data", ""
    ),
    mutation(
        "a bomb",
        ("runtime/delta.py", "runtime/test_delta.py"),
        "(stored.numpy().data, size + 1)",
        "(stored.numpy().data)",
    ),
    mutation(
        "bytes that are not sorted by significance",
        ("runtime/delta.py", "runtime/test_delta.py"),
        "difference.reshape(-1, tensor.element_size()).T",
        "difference.reshape(tensor.element_size(), -1)",
    ),
    mutation("a base forgotten by a cast", FINGERPRINT, "for dtype in CASTS:", "for dtype in [tensor.dtype]:"),
    mutation("a changed weight taken for what it was", FINGERPRINT, " {zlib.crc32(_bytes(tensor)):08x}", ""),
    mutation("the cache of other weights", FINGERPRINT, 'if cached["files"] == stamp else {}', "if stamp else {}"),
    mutation("a cast taken for the weights of the file", FINGERPRINT, "if source.read is not None and", "if False and"),
    mutation(
        "layers and sides exchanged in peft's prefix",
        PEFT,
        '"L sides G P K -> P (L sides G K)"',
        '"L sides G P K -> P (sides L G K)"',
    ),
    mutation("a gate that peft lacks", PEFT, 'if "gate" in state:', "if False:"),
    mutation("unshifted positions that peft lacks", PEFT, "if not method.shift_positions:", "if False:"),
    mutation(
        "an alpha that forgets the root of the rank",
        PEFT_LORA,
        "return math.sqrt(rank) if stabilised else float(rank)",
        "return float(rank)",
    ),
    mutation(
        "A and B of an embedding exchanged for peft",
        PEFT_LORA,
        '{"b": "lora_embedding_A", "a": "lora_embedding_B"}',
        '{"a": "lora_embedding_A", "b": "lora_embedding_B"}',
    ),
    mutation("a rank that the pattern does not give", PEFT_LORA, 'if rank != len(factors["a"]):', "if rank is None:"),
    mutation(
        "another base beside a peft adapter",
        PEFT_LORA,
        "if not torch.equal(tensor.to(matrix.weight), matrix.weight):",
        "if False:",
    ),
    mutation(
        "a block of c_attn in another's rows", PEFT_LORA, "torch.block_diag(*rows)", "torch.block_diag(*reversed(rows))"
    ),
    mutation("a cache without the last token", ACTIVATIONS, "real = states[: end + 1]", "real = states[:end]"),
    mutation("a stage above the norm", ACTIVATIONS, '{"decoder.norm": layers,', '{"decoder.norm": layers + 1,'),
    mutation("frozen layers that run every epoch", ACTIVATIONS, " if row not in self._rows]", "]"),
    mutation("a trained block that is left out", ACTIVATIONS, "start=self.start)", "start=self.start + 1)"),
    mutation("frozen layers written to unseen", ACTIVATIONS, "tensor.dtype, tensor._version)", "tensor.dtype)"),
    mutation("frozen layers in another precision", ACTIVATIONS, "now = [half, *", "now = [*"),
    mutation("states that overlap in their file", ACTIVATIONS, "self.chunk[needed:]", "self.chunk[needed // 2 :]"),
    mutation(
        "a mean over padding",
        POOLING,
        "mask.to(hidden.dtype) / mask.sum(",
        "torch.ones_like(mask).to(hidden.dtype) / mask.sum(",
    ),
    mutation("the block below", POOLING, "return self.layer + 1", "return self.layer"),
    mutation("a flipped bit", STORE, 'if stored.get("sha256") != tensor_fingerprint(features):', "if False:"),
    mutation("another tokenizer's store", STORE, '"tokenizer": tokenizer_fingerprint,', ""),
    mutation("features with dropout", STORE, "    decoder.eval()\n", ""),
    mutation("a ridge without class weights", HEADS, "(weight[:, None] * centred)", "centred"),
    mutation("a ridge without a bias", HEADS, "centred = rows - rows_mean", "centred = rows"),
    mutation("a loss without class weights", HEADS, "(weight * F.cross_entropy(", "(F.cross_entropy("),
    mutation("labels of another piece", HEADS, "start += len(rows)", "start += 0"),
    mutation("a fit that goes on from the last one", HEADS, "    exact.reset()\n", ""),
    mutation("the farthest neighbours", HEADS, ", largest=False)", ")"),
    mutation("a bias for standardised features", HEADS, "self.bias.sub_(", "self.bias.add_("),
    mutation("a final norm without its bias", FINE_TUNE, '["norm.*"]', '["norm.weight"]'),
    mutation("classes in another order", FINE_TUNE, "rows[tokens]", "rows[sorted(tokens)]"),
    mutation("a rate without a schedule", LOOP, "rate_at(done, self.steps, self.settings)", "self.settings.rate"),
    mutation("a step along what is no number", LOOP, "if not math.isfinite(loss):", "if False:"),
    mutation("a learner that is told no rate", LEARNER, 'group["lr"] = rate', "pass"),
    mutation(
        "numpy that does not clip",
        NUMPY,
        "clip_by_global_norm(self.gradients, self.settings.clip)",
        "self.gradients, 0",
    ),
    mutation("numpy that foretells the token itself", NUMPY, "labels_BT[:, 1:]", "labels_BT[:, :-1]"),
    mutation("numpy that goes on with a first step", NUMPY, ', int(tensors["steps"]))', ")"),
    mutation(
        "norms that decay",
        ("reference/adamw.py", "reference/test_adamw.py"),
        "rate * decay if weight.ndim > 1 else 0.0",
        "rate * decay",
    ),
    mutation(
        "an interrupted adapter that is lost",
        ("classifier.py", "adapters/test_commands.py"),
        "on_interrupt=lambda: on_trained(self)",
        "on_interrupt=lambda: None",
    ),
]
