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
FILES = ("adapt/files.py", "adapt/test_files.py")
FINGERPRINT = ("adapt/fingerprint.py", "adapt/test_fingerprint.py")
TRUNK = ("adapt/trunk.py", "adapt/test_trunk.py")
STORE = ("adapt/feature_store.py", "adapt/test_feature_store.py")
HEADS = ("adapt/heads.py", "adapt/test_heads.py")
FINE_TUNE = ("adapt/fine_tune.py", "adapt/test_fine_tune.py")
LOOP = ("training.py", "test_training.py")
LEARNER = ("learner.py", "lab/test_numpy_learner.py")
NUMPY = ("lab/numpy_learner.py", "lab/test_numpy_learner.py")
PEFT = ("hub/peft.py", "hub/test_peft.py")
PEFT_LORA = ("hub/peft_lora.py", "hub/test_peft.py")
TEMPLATE, BOUNDARY, CHOOSING, KEPT, SCORING, MEASURES, CALIBRATION, ANSWERING, EXTRACTION, LABELLING = (
    (f"prompting/{name}.py", f"prompting/test_{name}.py")
    for name in (
        "template", "boundary", "choosing", "kept", "scoring", "measures", "calibration", "answering", "extraction",
        "labelling",
    )
)  # fmt: skip


def _mutation(what, where, old, new):
    file, test = where
    return Mutation(what, file, old, new, test)


MUTATIONS = [
    _mutation(
        "a transposed head",
        DECODER,
        '"B T (heads K) -> B heads T K"',
        '"B T (K heads) -> B heads T K"',
    ),
    _mutation("heads merged in the wrong order", DECODER, '"B H T K -> B T (H K)"', '"B H T K -> B T (K H)"'),
    _mutation(
        "a query that reads another group's keys",
        ATTENTION,
        'stacked = rearrange(query, "B (G group) T K -> B G (group T) K"',
        'stacked = rearrange(query, "B (group G) T K -> B G (group T) K"',
    ),
    _mutation("a missing scale, step by step", ATTENTION, " / math.sqrt(query.shape[-1])", ""),
    _mutation("a missing scale, in the kernel", ATTENTION, "is_causal=square,", "is_causal=square, scale=1.0,"),
    _mutation("a mask that shows the next token", ATTENTION, ".tril(keys - queries)", ".tril(keys - queries + 1)"),
    _mutation("a mask that hides the token itself", ATTENTION, ".tril(keys - queries)", ".tril(keys - queries - 1)"),
    _mutation("a mask aligned at the start", ATTENTION, ".tril(keys - queries)", ".tril(0)"),
    _mutation("padding that sees nothing", ATTENTION, "causal & mask[:, None] | itself", "causal & mask[:, None]"),
    _mutation("padding that is read", ATTENTION, "causal & mask[:, None] | itself", "causal | itself"),
    _mutation("a prefix hidden by the mask", ATTENTION, "value=True", "value=False"),
    _mutation(
        "a prefix after the text",
        ATTENTION,
        "zip(before, (key, value), strict=True)",
        "zip((key, value), before, strict=True)",
    ),
    _mutation("a gate without its tanh", ATTENTION, "prefix.gate.tanh()", "prefix.gate"),
    _mutation(
        "dropout that forgets attention",
        ATTENTION,
        "dropout_p=dropout_probability",
        "dropout_p=0 * dropout_probability",
    ),
    _mutation(
        "a kernel that shows the next token",
        TILES,
        "tl.where(key[None, :] <= last[:, None]",
        "tl.where(key[None, :] <= last[:, None] + 1",
    ),
    _mutation("a kernel in which padding sees nothing", TILES, " | (key[None, :] == last[:, None])", ""),
    _mutation("a stack of queries in another order", TILES, "row % GROUP * stride_h", "row % 2 * stride_h"),
    _mutation("a sum that does not fade", KERNEL, "total * faded", "total"),
    _mutation("a prefix that is seen without its last key", KERNEL, "(BLOCK_T,), prompt - 1", "(BLOCK_T,), prompt - 2"),
    _mutation("slopes of queries without their delta", BACKWARD, " - delta[:, None]", ""),
    _mutation(
        "slopes of padding that are kept",
        BACKWARD,
        "dk, dv = tl.where(real[:, None], dk, 0.0), tl.where(real[:, None], dv, 0.0)",
        "pass",
    ),
    _mutation("a prefix that learns from the first row alone", BACKWARD, "b + step // tiles", "b"),
    _mutation(
        "half of the queries after a key", BACKWARD, "        end = tiles\n", "        end = (start + tiles + 1) // 2\n"
    ),
    _mutation("a dropped 1 / (1 - p)", ("ops/dropout.py", "ops/test_dropout.py"), " / (1.0 - probability)", ""),
    _mutation(
        "dropout that keeps what it should drop",
        ("ops/dropout.py", "ops/test_dropout.py"),
        "torch.rand_like(hidden) >= probability",
        "torch.rand_like(hidden) < probability",
    ),
    _mutation(
        "eps outside the root",
        ("ops/norm.py", "ops/test_norm.py"),
        "torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
        "1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps)",
    ),
    _mutation(
        "an rms norm that centres",
        ("ops/norm.py", "ops/test_norm.py"),
        "wide.square().mean(-1, keepdim=True)",
        "wide.var(-1, keepdim=True, correction=0)",
    ),
    _mutation("a norm in half precision", ("ops/norm.py", "ops/test_norm.py"), "torch.float32", "torch.float16"),
    _mutation(
        "a layer norm without its bias",
        ("ops/norm.py", "ops/test_norm.py"),
        "hidden, weight.shape, weight, bias, eps)",
        "hidden, weight.shape, weight, None, eps)",
    ),
    _mutation(
        "add & norm that loses what is added",
        ("ops/norm.py", "ops/test_norm.py"),
        "return total, rms_norm(total, weight, eps)",
        "return total, rms_norm(hidden, weight, eps)",
    ),
    _mutation("a wrong RoPE sign", POSITIONS, "first * cos - second * sin", "first * cos + second * sin"),
    _mutation(
        "neighbours turned instead of halves",
        POSITIONS,
        "vectors.chunk(2, -1)",
        "vectors.unflatten(-1, (-1, 2)).unbind(-1)",
    ),
    _mutation("frequencies that grow", POSITIONS, "theta ** (-pairs / width)", "theta ** (pairs / width)"),
    _mutation(
        "angles in half precision", POSITIONS, "wide = torch.promote_types(dtype, torch.float32)", "wide = dtype"
    ),
    _mutation("sines and cosines exchanged", POSITIONS, "(angles.sin(), angles.cos())", "(angles.cos(), angles.sin())"),
    _mutation("positions that begin at one", POSITIONS, "cumsum(-1) - 1)", "cumsum(-1))"),
    _mutation("positions that count padding", POSITIONS, "mask.long().cumsum", "torch.ones_like(mask).long().cumsum"),
    _mutation(
        "GELU by the error function",
        ("ops/feed_forward.py", "ops/test_feed_forward.py"),
        'F.gelu(up, approximate="tanh")',
        "F.gelu(up)",
    ),
    _mutation(
        "a gate and what it gates exchanged",
        ("ops/feed_forward.py", "ops/test_feed_forward.py"),
        "F.silu(gate) * up",
        "F.silu(up) * gate",
    ),
    _mutation(
        "a gate whose gradient forgets what it gates",
        ("ops/feed_forward.py", "ops/test_feed_forward.py"),
        "silu_backward(gradients[0] * up, gate)",
        "silu_backward(gradients[0], gate)",
    ),
    _mutation(
        "a frozen matrix that keeps what it read",
        ("ops/linear.py", "ops/test_linear.py"),
        "x if ctx.needs_input_grad[1] else None",
        "x",
    ),
    _mutation("an unscaled dW", ("ops/lora.py", "ops/test_lora.py"), ".mul_(scale)", ""),
    _mutation(
        "an unscaled gradient of A",
        ("ops/lora.py", "ops/test_lora.py"),
        "(gradient @ b).mul_(ctx.scale)",
        "gradient @ b",
    ),
    _mutation(
        "an input that learns from the frozen matrix alone",
        ("ops/lora.py", "ops/test_lora.py"),
        ".addmm_(shared, a)",
        "",
    ),
    _mutation(
        "a row without an adapter that takes the last one",
        ("ops/lora.py", "ops/test_lora.py"),
        "(F.pad(side.to(dtype), (0, 0, 0, 0, 0, 1))[adapter] for",
        "(side.to(dtype)[adapter] for",
    ),
    _mutation("a loss over padding", LOSS, "labelled = labels != IGNORED", "labelled = labels >= 2 * IGNORED"),
    _mutation("a mean of means", LOSS, "labels[:, None]).sum()", "labels[:, None]).mean()"),
    _mutation("a loss in half precision", LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    _mutation(
        "a softmax over the wrong axis",
        ("ops/softmax.py", "ops/test_softmax.py"),
        "torch.softmax(scores, -1)",
        "torch.softmax(scores, 0)",
    ),
    _mutation(
        "a logarithm of a rounded softmax",
        ("ops/softmax.py", "ops/test_softmax.py"),
        "torch.log_softmax(scores, -1)",
        "torch.softmax(scores, -1).log()",
    ),
    _mutation("keys that are not turned", DECODER, "rotary(key, *rotation)", "key"),
    _mutation("embeddings that are not scaled", DECODER, " * math.sqrt(config.width) + sin", " + sin"),
    _mutation("a prompt that takes no positions", DECODER, "len(prefix) if prefix is not None else 0", "0"),
    _mutation("a prefix for the first layer alone", DECODER, "prefix.layer(index)", "prefix.layer(0)"),
    _mutation(
        "a residual that is dropped",
        DECODER,
        "return hidden + self._drop(self.feed_forward(normed))",
        "return self._drop(self.feed_forward(normed))",
    ),
    _mutation(
        "one norm in both places",
        DECODER,
        "self.feed_forward_norm.add(hidden, read)",
        "self.attention_norm.add(hidden, read)",
    ),
    _mutation("no last norm", DECODER, "self.norm(hidden)", "hidden"),
    _mutation(
        "a mask that the blocks do not see", DECODER, "Surroundings(rotation, mask,", "Surroundings(rotation, None,"
    ),
    _mutation("a head that is not tied", LAWS, "self.head.weight = self.embed.weight", "pass"),
    _mutation("a depth that does not calm the start", LAWS, "0.02 / math.sqrt(2 * self.config.layers)", "0.02"),
    _mutation(
        "dropout at evaluation",
        LAWS,
        "dropout(hidden, self.dropout if self.training else 0.0)",
        "dropout(hidden, self.dropout)",
    ),
    _mutation(
        "greedy top-p",
        ("generation.py", "reference/test_sampling.py"),
        "ordered.cumsum(-1) - ordered >= top_p",
        "ordered.cumsum(-1) >= top_p",
    ),
    _mutation(
        "an adapter that any base takes",
        FILES,
        "different = [name for name in {**here, **there} if here.get(name) != there.get(name)]",
        "different = [name for name in {**here, **there} if name not in here or name not in there]",
    ),
    _mutation("a base with another rope_theta taken for its own", FILES, '"rope_theta", "norm_eps")', '"norm_eps")'),
    _mutation(
        "flipped bits in an adapter", FILES, "if tensor_fingerprint(stored) != expected:", "if expected is None:"
    ),
    _mutation("numbers that are not finite saved", FILES, '_check_finite(state, "the method")', "pass"),
    _mutation("an adapter that does nothing", FILES, "if found.size == 0 and not allow_noop:", "if False:"),
    _mutation("another tokenizer", FILES, "not in (None, tokenizer.fingerprint)", "is False"),
    _mutation(
        "a difference to a base that has been cast since",
        FILES,
        "yield self.loaded[stored]",
        "yield self.present[name].detach().cpu()",
    ),
    _mutation(
        "the dtype that the base had forgotten",
        FILES,
        "decode(stored, weight.to(base_dtype).to(dtype))",
        "decode(stored, weight.to(dtype))",
    ),
    _mutation(
        "an edited adapter.json",
        ("adapt/description.py", "adapt/test_description.py"),
        "if description.seal() != seal:",
        "if False:",
    ),
    _mutation(
        "a name that stands twice in adapter.json",
        ("adapt/description.py", "adapt/test_description.py"),
        "if len(found) != len(pairs):",
        "if False:",
    ),
    _mutation("a difference without its end", ("adapt/delta.py", "adapt/test_delta.py"), " or not unpacker.eof", ""),
    _mutation(
        "something after a difference", ("adapt/delta.py", "adapt/test_delta.py"), " or unpacker.unused_data", ""
    ),
    _mutation(
        "a bomb", ("adapt/delta.py", "adapt/test_delta.py"), "(stored.numpy().data, size + 1)", "(stored.numpy().data)"
    ),
    _mutation(
        "bytes that are not sorted by significance",
        ("adapt/delta.py", "adapt/test_delta.py"),
        "difference.reshape(-1, tensor.element_size()).T",
        "difference.reshape(tensor.element_size(), -1)",
    ),
    _mutation("a base forgotten by a cast", FINGERPRINT, "for dtype in CASTS:", "for dtype in [tensor.dtype]:"),
    _mutation("a changed weight taken for what it was", FINGERPRINT, " {zlib.crc32(_bytes(tensor)):08x}", ""),
    _mutation("the cache of other weights", FINGERPRINT, 'if kept["files"] == stamp else {}', "if stamp else {}"),
    _mutation(
        "a cast taken for the weights of the file", FINGERPRINT, "if origin.read is not None and", "if False and"
    ),
    _mutation(
        "layers and sides exchanged in peft's prefix",
        PEFT,
        '"L sides G P K -> P (L sides G K)"',
        '"L sides G P K -> P (sides L G K)"',
    ),
    _mutation("a gate that peft lacks", PEFT, 'if "gate" in state:', "if False:"),
    _mutation("unshifted positions that peft lacks", PEFT, "if not method.shift_positions:", "if False:"),
    _mutation(
        "an alpha that forgets the root of the rank",
        PEFT_LORA,
        "return math.sqrt(rank) if stabilised else float(rank)",
        "return float(rank)",
    ),
    _mutation(
        "A and B of an embedding exchanged for peft",
        PEFT_LORA,
        '{"b": "lora_embedding_A", "a": "lora_embedding_B"}',
        '{"a": "lora_embedding_A", "b": "lora_embedding_B"}',
    ),
    _mutation("a rank that the pattern does not give", PEFT_LORA, 'if rank != len(factors["a"]):', "if rank is None:"),
    _mutation(
        "another base beside a peft adapter",
        PEFT_LORA,
        "if not torch.equal(tensor.to(matrix.weight), matrix.weight):",
        "if False:",
    ),
    _mutation(
        "a block of c_attn in another's rows", PEFT_LORA, "torch.block_diag(*rows)", "torch.block_diag(*reversed(rows))"
    ),
    _mutation("a trunk that forgets the last token", TRUNK, "kept = states[: end + 1]", "kept = states[:end]"),
    _mutation("a boundary above the norm", TRUNK, '{"decoder.norm": layers,', '{"decoder.norm": layers + 1,'),
    _mutation("a trunk that is run every epoch", TRUNK, " if row not in self._rows]", "]"),
    _mutation("a block between trunk and top", TRUNK, "since=self.boundary)", "since=self.boundary + 1)"),
    _mutation("a trunk written to unseen", TRUNK, "tensor.dtype, tensor._version)", "tensor.dtype)"),
    _mutation("a trunk in another precision", TRUNK, "now = [half, *", "now = [*"),
    _mutation("states that overlap in their file", TRUNK, "self.chunk[needed:]", "self.chunk[needed // 2 :]"),
    _mutation(
        "a mean over padding",
        STORE,
        "mask.to(hidden.dtype) / mask.sum(",
        "torch.ones_like(mask).to(hidden.dtype) / mask.sum(",
    ),
    _mutation("the block below", STORE, "return self.layer + 1", "return self.layer"),
    _mutation("a flipped bit", STORE, 'if stored.get("sha256") != tensor_fingerprint(features):', "if False:"),
    _mutation("another tokenizer's store", STORE, '"tokenizer": tokenizer,', ""),
    _mutation("features with dropout", STORE, "    decoder.eval()\n", ""),
    _mutation("a ridge without class weights", HEADS, "(weight[:, None] * centred)", "centred"),
    _mutation("a ridge without a bias", HEADS, "centred = rows - rows_mean", "centred = rows"),
    _mutation("a loss without class weights", HEADS, "(weight * F.cross_entropy(", "(F.cross_entropy("),
    _mutation("labels of another piece", HEADS, "start += len(rows)", "start += 0"),
    _mutation("a fit that goes on from the last one", HEADS, "    exact.reset()\n", ""),
    _mutation("the farthest neighbours", HEADS, ", largest=False)", ")"),
    _mutation("a bias for standardised features", HEADS, "self.bias.sub_(", "self.bias.add_("),
    _mutation("a final norm without its bias", FINE_TUNE, '["norm.*"]', '["norm.weight"]'),
    _mutation("classes in another order", FINE_TUNE, "rows[tokens]", "rows[sorted(tokens)]"),
    _mutation("a rate without a schedule", LOOP, "rate_at(done, self.steps, self.settings)", "self.settings.rate"),
    _mutation("a step along what is no number", LOOP, "if not math.isfinite(loss):", "if False:"),
    _mutation("a learner that is told no rate", LEARNER, 'group["lr"] = rate', "pass"),
    _mutation(
        "numpy that does not clip",
        NUMPY,
        "clip_by_global_norm(self.gradients, self.settings.clip)",
        "self.gradients, 0",
    ),
    _mutation("numpy that foretells the token itself", NUMPY, "labels_BT[:, 1:]", "labels_BT[:, :-1]"),
    _mutation("numpy that goes on with a first step", NUMPY, ', int(tensors["steps"]))', ")"),
    _mutation(
        "norms that decay",
        ("reference/adamw.py", "reference/test_adamw.py"),
        "rate * decay if weight.ndim > 1 else 0.0",
        "rate * decay",
    ),
    _mutation(
        "an interrupted adapter that is lost",
        ("lab/climbing.py", "test_adapter_commands.py"),
        "interrupted=lambda: keep(method), name=name",
        "name=name",
    ),
    _mutation("examples without their chains", TEMPLATE, "{CHAIN_CUE} {shot.chain}{self", "{CHAIN_CUE}{self"),
    _mutation("a blank at the start of a turn", TEMPLATE, "(self.begun + said).lstrip()", "(self.begun + said)"),
    _mutation("bos left out", TEMPLATE, "return start + tokenizer.encode(", "return tokenizer.encode("),
    _mutation("a conclusion that is drawn twice", TEMPLATE, ".split(self.conclusion)[0]", ""),
    _mutation("a trailing blank let through", BOUNDARY, 'if prompt.endswith(" "):', "if False:"),
    _mutation(
        "a shared token let through", BOUNDARY, "!= before + tokenizer.encode(answer):", "== tokenizer.encode(answer):"
    ),
    _mutation("the farthest examples", CHOOSING, "cosines.topk(count)", "cosines.topk(count, largest=False)"),
    _mutation("the nearest example first", CHOOSING, ".indices.flip(-1)", ".indices"),
    _mutation("dot products for cosines", CHOOSING, "F.normalize(found, dim=-1)", "found"),
    _mutation("an order twice", CHOOSING, "if order not in found:", "if True:"),
    _mutation("a start read again for each row", KEPT, "prompt[len(self.start) :] for", "prompt for"),
    _mutation("a start of which a token is lost", KEPT, "torch.tensor([self.start],", "torch.tensor([self.start[1:]],"),
    _mutation("a start that leaves a row nothing", KEPT, "for row in rows) - 1)", "for row in rows))"),
    _mutation(
        "the token after the one foretold",
        SCORING,
        "range(len(prompt) - 1, len(prompt) +",
        "range(len(prompt), len(prompt) + 1 +",
    ),
    _mutation(
        "a prompt read for every answer", SCORING, "different = list(dict.fromkeys(starts))", "different = list(starts)"
    ),
    _mutation("another branch's answer", SCORING, "if _goes_on(stem, answer[:-1]))", "if True)"),
    _mutation("lengths with the blank", MEASURES, 'answer.removeprefix(" ") for', "answer for"),
    _mutation("bytes for characters", MEASURES, "[len(w) for w in words]", "[len(w.encode()) for w in words]"),
    _mutation("information with the wrong sign", MEASURES, "scores - unconditional", "scores + unconditional"),
    _mutation("a mean of log-probabilities", CALIBRATION, ".exp().mean(1).log()", ".mean(1)"),
    _mutation(
        "probabilities over all words", CALIBRATION, "(log_softmax(scores) - expected)", "(scores * 2 - expected)"
    ),
    _mutation("a stop that is kept", ANSWERING, "_cut(tokenizer.decode", "(lambda text, _: text)(tokenizer.decode"),
    _mutation("one seed for all samples", ANSWERING, "speech.seed + 10_000 * sample", "speech.seed"),
    _mutation(
        "a second stage without the first",
        ANSWERING,
        "_replace(said=questions[n].template.conclude(found[n]))",
        "_replace(said=questions[n].template.conclusion)",
    ),
    _mutation(
        "answers in the order of their lengths",
        ANSWERING,
        "in zip(batch, new.tolist(), strict=True)",
        "in zip(sorted(batch), new.tolist(), strict=True)",
    ),
    _mutation("the first number there is", EXTRACTION, "flexible[-1]", "flexible[0]"),
    _mutation("the shortest label that fits", EXTRACTION, "key=len, reverse=True", "key=len"),
    _mutation("a part of a number", EXTRACTION, "(?!\\w|[.,]\\d)", ""),
    _mutation("silence that votes", EXTRACTION, "if answer is not None)", ")"),
    _mutation(
        "one set of content-free texts for all", LABELLING, "templates = templates[:1]", "templates = templates[:2]"
    ),
    _mutation("content-free texts in the wrong template", LABELLING, "[order.argsort()]", ""),
]
