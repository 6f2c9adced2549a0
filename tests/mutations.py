"""Mutations of the arithmetic, which the tests must detect: `python -m pytest -m slow tests/test_mutations.py`.

A mutation is a small edit of a file of `minillm`, and the test that must fail because of it. Files are edited as syntax
trees, so layout and comments do not matter. A change of an operation includes its mutations here.
"""

import ast
from pathlib import Path
from typing import NamedTuple

from tests.strategies import OPERATIONS


class Mutation(NamedTuple):
    """`old` and `new` are an expression each, or statements; `old` occurs once in the file, or in the function or class
    `within` ("Class.method"). In files that are not Python they are text."""

    what: str
    file: str
    old: str
    new: str
    test: str
    within: str = ""

    def apply(self, source):
        """The source of the mutated file."""
        if not self.file.endswith(".py"):
            return source.replace(self.old, self.new)
        tree, (old, new) = ast.parse(source), self.nodes()
        node, field, start = self.place(tree)
        if isinstance(children := getattr(node, field), list):
            children[start : start + len(old)] = new
        else:
            setattr(node, field, new[0])
        return ast.unparse(tree)

    def nodes(self):
        """`old` and `new` as lists: of one expression each, or of statements if one of them is no expression."""
        bodies = [ast.parse(source).body for source in (self.old, self.new)]
        if all(isinstance(body[0], ast.Expr) and len(body) == 1 for body in bodies):
            return [[body[0].value] for body in bodies]
        return bodies

    def place(self, tree):
        """The parent of the nodes that equal `old`, their field in it, and the index of the first."""
        places = list(_places(_definition(tree, self.within), self.nodes()[0]))
        assert len(places) == 1, f"{self.old!r} occurs {len(places)} times in {self.file}, not once: {self}"
        return places[0]


def _definition(tree, within):
    for name in filter(None, within.split(".")):
        (tree,) = (node for node in ast.walk(tree) if getattr(node, "name", None) == name and hasattr(node, "body"))
    return tree


def _places(tree, old):
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            nodes = value if isinstance(value, list) else [value]
            for start, node in enumerate(nodes):
                if type(node) is type(old[0]) and equal(nodes[start : start + len(old)], old):
                    yield parent, field, start


def equal(one, other):
    """Two nodes or lists are equal except for their positions in the source."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, ast.AST):
        return all(equal(getattr(one, name, None), getattr(other, name, None)) for name in one._fields)
    return one == other


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
SEALED = ("runtime/reading.py", "adapt/test_description.py")
READ = ("runtime/reading.py", "runtime/test_reading.py")
HUB_TOKENIZER = ("hub/huggingface_tokenizer.py", "hub/test_huggingface_tokenizer.py")
DESCRIBED = ("adapt/description.py", "adapters/test_load.py")
FINGERPRINT = "runtime/fingerprint.py"
ACTIVATIONS = "training/activation_cache.py"
POOLING = ("adapt/frozen_head.py", "training/test_feature_cache.py")
STORE = "training/feature_cache.py"
LOGISTIC = "adapt/logistic.py"
FINE_TUNE = "adapt/fine_tune.py"
LOOP = "training/loop.py"
LEARNER = ("training/learners.py", "training/test_numpy_learner.py")
JOB = ("training/learners.py", "training/test_distributed.py::test_processes_take_the_same_steps_as_one[2]")
NUMPY = "training/numpy_learner.py"
FAMILY = ("hub/llama_settings.py", "hub/test_families.py")
WINDOWED = "laws.py::test_the_law_holds_for_the_relatives_of_llama[9-{}-Mistral]"
PEFT = "hub/peft.py"
GGUF_TOKENIZER = ("hub/gguf_tokenizer_export.py", "hub/test_llama_cpp.py")
GGUF_PIECES = ("hub/gguf_sentencepiece.py", "hub/test_sentencepiece.py")
GGUF_LORA = ("hub/gguf_lora.py", "hub/test_llama_cpp.py")
PEFT_LORA = ("hub/peft_lora.py", "hub/test_peft.py")


def mutation(what, where, old, new, within=""):
    """`where` is the file that is changed, and the test that must fail, by default `test_` and the name of the file."""
    file, test = where if isinstance(where, tuple) else only(where)
    return Mutation(what, file, old, new, test, within)


def only(where, *name):
    """One test of a long file."""
    file, test = where if isinstance(where, tuple) else (where, str(Path(where).with_name(f"test_{Path(where).name}")))
    return file, "::".join((test, *name))


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
    ("a transposed head", DECODER, "'B T (heads K) -> B heads T K'", "'B T (K heads) -> B heads T K'"),
    ("heads merged in the wrong order", DECODER, "'B H T K -> B T (H K)'", "'B H T K -> B T (K H)'"),
    ("a query that uses another group's keys", plain("attention"), "side.repeat_interleave(heads // side.shape[1], 1)",
        "side.repeat(1, heads // side.shape[1], 1, 1)"),
    ("a missing scale", plain("attention"),
        "query @ for_each_head(key, query.shape[1]).mT / math.sqrt(query.shape[-1])",
        "query @ for_each_head(key, query.shape[1]).mT"),
    ("a prefix hidden by the mask", plain("attention"), "F.pad(mask, (prefix.key.shape[2], 0), value=PREFIX)",
        "F.pad(mask, (prefix.key.shape[2], 0), value=0)"),
    ("a prefix after the text", plain("attention"), "zip(before, (key, value), strict=True)",
        "zip((key, value), before, strict=True)"),
    ("a gate without its tanh", plain("attention"), "prefix.gate.tanh()", "prefix.gate"),
    ("a mask that shows the next token", plain("visible_keys"),
        "torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)",
        "torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries + 1)"),
    ("a mask that hides the token itself", plain("visible_keys"),
        "torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)",
        "torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries - 1)"),
    ("a mask aligned at the start", plain("visible_keys"),
        "torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)",
        "torch.ones(queries, keys, dtype=torch.bool, device=device).tril(0)"),
    ("padding that attends to nothing", plain("visible_keys"), "causal & mask[:, None] | itself",
        "causal & mask[:, None]"),
    ("padding that is attended to", plain("visible_keys"), "causal & mask[:, None]", "causal"),
    ("a window of one token less", plain("visible_keys"), "place[:, keys - queries:, None] - place[:, None] < window",
        "place[:, keys - queries:, None] - place[:, None] < window - 1"),
    ("a window that counts padding", "ops/attention.py",
        "torch.arange(keys, device=device)[None] if mask is None else mask.cumsum(-1)",
        "torch.arange(keys, device=device)[None]"),
    ("a window that passes over a trained prefix", plain("visible_keys"), "near[..., :always] = True", "pass"),
    ("a window that one query ignores", "fast/attention.py", "mask is None and window is None and queries == 1",
        "mask is None and queries == 1"),
    ("a missing scale, fast", fast("attention"), "F.scaled_dot_product_attention",
        "lambda *given, **named: F.scaled_dot_product_attention(*given, **named | {'scale': 1.0})", "attention"),
    ("a gate without its tanh, fast", fast("attention"), "prefix.gate.tanh()", "prefix.gate"),
    ("another group's keys, in bfloat16", fast_in_half("attention"), "'B (G group) T K -> B G (group T) K'",
        "'B (group G) T K -> B G (group T) K'"),
    ("a missing scale, in bfloat16", fast_in_half("attention"),
        "rearrange(stacked @ key.mT, 'B G (group T) S -> B (G group) T S', T=queries) / math.sqrt(query.shape[-1])",
        "rearrange(stacked @ key.mT, 'B G (group T) S -> B (G group) T S', T=queries)"),
    ("dropout that forgets attention", ("fast/attention.py", "ops/test_dropout.py"), "F.scaled_dot_product_attention",
        "lambda *given, **named: F.scaled_dot_product_attention(*given, **named | {'dropout_p': 0.0})", "attention"),
    ("a kernel that shows the next token", TILES, "key[None, :] <= last[:, None]", "key[None, :] <= last[:, None] + 1"),
    ("a kernel in which padding attends to nothing", TILES,
        "visible & (key[None, :] < last[:, None]) | (key[None, :] == last[:, None])",
        "visible & (key[None, :] < last[:, None])"),
    ("a stack of queries in another order", TILES, "row % GROUP", "row % 2"),
    ("a sum that is not rescaled", KERNEL, "total * rescale", "total"),
    ("a prefix without its last key", KERNEL, "prompt - 1", "prompt - 2"),
    ("gradients of queries without their delta", BACKWARD,
        "tl.dot(dout, tl.trans(v), input_precision=EXACT) - delta[:, None]",
        "tl.dot(dout, tl.trans(v), input_precision=EXACT)"),
    ("gradients of padding that are not zeroed", BACKWARD,
        "dk, dv = tl.where(real[:, None], dk, 0.0), tl.where(real[:, None], dv, 0.0)", "pass"),
    ("a prefix trained on the first row alone", only(BACKWARD, "test_strided_inputs_are_not_copied"),
        "b + step // tiles", "b"),
    ("half of the queries after a key", only(BACKWARD, "test_many_tiles_give_the_same_result"),
        "end = tiles", "end = (start + tiles + 1) // 2"),
    ("a dropped 1 / (1 - p)", plain("dropout"), "hidden * keep / (1.0 - probability)", "hidden * keep"),
    ("dropout that keeps what it should drop", "ops/dropout.py", "torch.rand_like(hidden) >= probability",
        "torch.rand_like(hidden) < probability"),
    ("eps outside the root", plain("rms_norm"), "torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
        "1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps)"),
    ("an rms norm that centres", plain("rms_norm"), "wide.square().mean(-1, keepdim=True)",
        "wide.var(-1, keepdim=True, correction=0)"),
    ("a layer norm without its bias", plain("layer_norm"), "normed * weight + bias", "normed * weight"),
    ("a layer norm that does not centre", plain("layer_norm"), "wide - wide.mean(-1, keepdim=True)", "wide"),
    ("a layer norm without its bias, fast", fast("layer_norm"), "bias", "None"),
    ("a norm in half precision", ("ops/norm.py", "ops/test_precision.py"),
        "hidden.to(torch.promote_types(hidden.dtype, torch.float32))", "hidden", "rms_norm"),
    ("a layer norm in half precision", ("ops/norm.py", "ops/test_precision.py"),
        "hidden.to(torch.promote_types(hidden.dtype, torch.float32))", "hidden", "layer_norm"),
    ("a wrong RoPE sign", plain("rotary"), "first * cos - second * sin", "first * cos + second * sin"),
    ("adjacent elements rotated instead of halves", plain("rotary"), "vectors.chunk(2, -1)",
        "vectors.unflatten(-1, (-1, 2)).unbind(-1)"),
    ("frequencies that grow", plain("rotary_tables"), "-pairs", "pairs"),
    ("frequencies of which the fast ones are scaled", plain("rotary_tables"), "share + (1 - share) / scaling.factor",
        "1 - share + share / scaling.factor"),
    ("cosines for sines", plain("rotary_tables"), "angles.sin", "angles.cos", "rotary_tables"),
    ("sines and cosines exchanged", plain("sinusoidal"), "angles.sin(), angles.cos()", "angles.cos(), angles.sin()"),
    ("positions that begin at one", plain("token_positions"), "mask.long().cumsum(-1) - 1", "mask.long().cumsum(-1)"),
    ("positions that count padding", plain("token_positions"), "mask.long()", "torch.ones_like(mask).long()"),
    ("positions that go on in the next conversation", plain("token_positions"),
        "start + same_conversation(mask).tril().sum(-1) - 1", "start + (mask != 0).cumsum(-1) - 1"),
    ("a conversation that attends to its neighbour", plain("visible_keys"), "causal & packed[:, keys - queries:]",
        "causal & (mask > 0)[:, None]"),
    ("a window that counts a neighbour's tokens", ("ops/attention.py", "test_packed_rows.py"), "packed.tril().sum(-1)",
        "(mask > 0).cumsum(-1)"),
    ("angles in half precision", ("ops/positions.py", "ops/test_precision.py"),
        "torch.promote_types(dtype, torch.float32)", "dtype"),
    ("the row of another token", plain("embedding"), "ids", "ids.flip(-1)"),
    ("a linear layer without its bias", plain("linear"), "F.linear(x, weight, bias)", "F.linear(x, weight)"),
    ("a relu of the negated input", plain("relu"), "torch.relu(up)", "torch.relu(-up)"),
    ("a gelu with a square for its cube", plain("gelu"), "up ** 3", "up ** 2"),
    ("GELU by the error function", fast("gelu"), "F.gelu(up, approximate='tanh')", "F.gelu(up)"),
    ("gate and up exchanged", plain("swiglu"), "gate * torch.sigmoid(gate) * up", "up * torch.sigmoid(up) * gate"),
    ("gate and up exchanged, fast", fast("swiglu"), "F.silu(gate).mul_(up)", "F.silu(up).mul_(gate)"),
    ("a gradient of the gate without the factor up", fast("swiglu"), "gradients[0] * up", "gradients[0]"),
    ("a frozen matrix that saves its input", "fast/linear.py", "x if ctx.needs_input_grad[1] else None", "x"),
    ("a gradient with its sign flipped", "fast/linear.py", "_product(gradient, weight.T.to(gradient.dtype))",
        "_product(-gradient, weight.T.to(gradient.dtype))"),
    ("an unscaled dW", plain("lora"), "scale * linear(low, b)", "linear(low, b)"),
    ("an A that multiplies x without dropout", plain("lora"), "x if dropped is None else dropped", "x"),
    ("an unscaled dW, fast", fast("lora"), "linear(x if dropped is None else dropped, a).mul_(scale)",
        "linear(x if dropped is None else dropped, a)"),
    ("an unscaled gradient of A", fast("lora"), "(gradient @ b).mul_(ctx.scale)", "gradient @ b"),
    ("an input gradient from the frozen matrix alone", fast("lora"), "d_x.addmm_(shared, a)", "d_x"),
    ("a row without an adapter that gets the last one", plain("lora_by_row"), "F.pad(side, (0, 0, 0, 0, 0, 1))",
        "side"),
    ("an update with its sign flipped", fast("lora_by_row"), "b.mT", "-b.mT"),
    ("a norm with half of its mixed term", plain("updated_norms"), "2 * scale", "scale"),
    ("a loss over padding", plain("linear_cross_entropy"), "labels != IGNORED", "labels >= 2 * IGNORED"),
    ("a mean of means", plain("linear_cross_entropy"), "log_probabilities.gather(-1, labels[labelled, None]).sum",
        "log_probabilities.gather(-1, labels[labelled, None]).mean"),
    ("a loss over padding, fast", fast("linear_cross_entropy"), "labels != IGNORED", "labels >= 2 * IGNORED"),
    ("a mean of means, fast", fast("linear_cross_entropy"), "log_probabilities.gather(-1, targets).sum",
        "log_probabilities.gather(-1, targets).mean"),
    ("a loss in half precision", LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    ("a loss in half precision, fast", FAST_LOSS, "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    ("a gradient without the label's one", fast("linear_cross_entropy"),
        "log_probabilities.exp_().scatter_add_(-1, targets, minus_one)", "log_probabilities.exp_()"),
    ("the gradient of the last chunk alone", FAST_LOSS, "d_weight.add_(d_chunk)", "d_chunk"),
    ("a softmax over the wrong axis", plain("softmax"), "-1", "0", "softmax"),
    ("a log-softmax over the wrong axis", plain("log_softmax"), "-1", "0", "log_softmax"),
    ("a logarithm of a rounded softmax", ("ops/softmax.py", "ops/test_precision.py"), "torch.log_softmax(scores, -1)",
        "torch.softmax(scores, -1).log()"),
    ("a merge with its sign flipped", ("adapt/lora.py", CHECK), "self.scale", "-self.scale", "change"),
    ("a saved adapter with its sign flipped", ("adapt/method.py", CHECK), "parameter.copy_(state[name])",
        "parameter.copy_(-state[name])"),
    ("a cache of which only the last token is used", ("generation.py", CHECK),
        "keys.narrow(2, 0, end), values.narrow(2, 0, end)",
        "keys.narrow(2, start, end - start), values.narrow(2, start, end - start)"),
    ("blocks recomputed by another backend", ("decoder.py", "test_choice.py"), "ops.bound(self.blocks[index])",
        "self.blocks[index]"),
    ("a backend that all threads share", ("operations.py", "test_choice.py"), "threading.local", "object"),
    ("heads without their norm", DECODER, "self.query_norm(query), self.key_norm(key)", "query, key"),
    ("rotary positions in every layer", DECODER, "None if index in self.config.unrotated_layers else rotation",
        "rotation"),
    ("keys that are not rotated", DECODER, "ops.rotary(key, *rotation)", "key"),
    ("embeddings that are not scaled", DECODER, "embeddings * math.sqrt(config.width)", "embeddings"),
    ("a prompt that does not count as positions", POSITIONS, "len(prefix) if prefix is not None else 0", "0"),
    ("a prefix for the first layer alone", DECODER, "prefix.layer(index)", "prefix.layer(0)"),
    ("a residual that is dropped", DECODER, "hidden + self.feed_forward(self.feed_forward_norm(hidden))",
        "self.feed_forward(self.feed_forward_norm(hidden))"),
    ("one norm in both places", DECODER, "self.feed_forward_norm(hidden)", "self.attention_norm(hidden)"),
    ("a norm before the residual is added", DECODER, "self.feed_forward_norm(hidden + self.feed_forward(hidden))",
        "hidden + self.feed_forward_norm(self.feed_forward(hidden))"),
    ("no last norm", DECODER, "self.norm(hidden)", "hidden"),
    ("a mask that does not reach the blocks", DECODER,
        "BlockInputs(layer_rotation, mask, layer_prefix, cache[index] if cache is not None else None)",
        "BlockInputs(layer_rotation, None, layer_prefix, cache[index] if cache is not None else None)"),
    ("a head that is not tied", LAWS, "self.head.weight = self.embed.weight", "pass"),
    ("an initialisation that ignores the depth", LAWS, "0.02 / math.sqrt(2 * self.config.layers)", "0.02"),
    ("dropout at evaluation", only(LAWS, "test_dropout_acts_only_in_training"),
        "self.dropout if self.training else 0.0", "self.dropout", "FeedForward"),
    ("weights dropped at evaluation", only(LAWS, "test_dropout_acts_only_in_training"),
        "p = self.dropout if self.training else 0.0", "p = self.dropout"),
    ("greedy top-p", ("generation.py", "reference/test_sampling.py"), "ordered.cumsum(-1) - ordered",
        "ordered.cumsum(-1)"),
    ("an adapter that loads onto any base", FILES, "here.get(name) != there.get(name)",
        "name not in here or name not in there"),
    ("a base with another rope_theta accepted", DESCRIBED,
        "'norm', 'norm_first', 'positions', 'feed_forward', 'heads', 'kv_heads', 'rope_theta', 'norm_eps'",
        "'norm', 'norm_first', 'positions', 'feed_forward', 'heads', 'kv_heads', 'norm_eps'"),
    ("flipped bits in an adapter accepted",
        (FILES, "adapters/test_fuzz.py::test_a_flipped_bit_of_a_tensor_is_refused"),
        "tensor_fingerprint(stored) != expected", "expected is None"),
    ("a model's declared ends ignored", HUB_TOKENIZER,
        "Tokenizer(pipeline, names, template, ends)", "Tokenizer(pipeline, names, template)"),
    ("the start of Llama 3 in GGUF left out", ("hub/gguf_tokenizer.py", "hub/test_gguf_tokenizer.py"),
        "pieces or kind == 'llama-bpe'", "pieces"),
    ("a worker of chat templates that stays after Ctrl-C",
        only("chat_template.py", "test_the_worker_ends_with_its_rendering_and_its_parent"),
        "not reply.endswith(b'\\n')", "False", "_Worker.answer"),
    ("a worker of chat templates shared with a forked process",
        only("chat_template.py", "test_forked_processes_have_their_own_workers"),
        "_workers.setdefault(os.getpid(), _Worker())", "_workers.setdefault(0, _Worker())"),
    ("a commit that does not remove files", ("runtime/files.py", "runtime/test_files.py"), "name in removed", "False"),
    ("a lock that two writers hold", ("runtime/locks.py", "runtime/test_files.py"),
        "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
    ("files that only their owner may read", ("runtime/files.py", "runtime/test_writers.py"),
        "shutil.copymode(journal, new.staged / name)", "pass"),
    ("non-finite weights of a base accepted",
        only(("hub/layout.py", "hub/test_huggingface.py"), "test_a_weight_that_is_not_finite_is_refused_by_its_name"),
        "not allow_nonfinite", "allow_nonfinite"),
    ("a sum that overflows taken for NaN", "runtime/finite.py",
        "tensor.sum().isfinite() or tensor.isfinite().all()", "tensor.sum().isfinite()"),
    ("non-finite numbers saved", only(SAVED, "test_nan_is_not_saved"), "check_finite(state, 'the method')", "pass"),
    ("an adapter without effect accepted", only(FILES, "test_an_adapter_without_effect_is_refused_unless_allowed"),
        "found.size == 0 and not allow_noop", "False"),
    ("another tokenizer accepted", only(FILES, "test_another_tokenizer_is_refused"),
        "description.tokenizer not in (None, tokenizer.fingerprint)",
        "description.tokenizer is False"),
    ("a delta against a base that was cast after loading",
        only(FILES, "test_a_base_in_another_dtype_takes_its_own_adapter"),
        "self.loaded[stored]",
        "self.present[name].detach().cpu()"),
    ("the original dtype of the base ignored",
        only(FILES, "test_a_float32_bias_trained_on_a_bfloat16_base_is_restored_on_the_base_itself"),
        "weight.to(base_dtype)", "weight"),
    ("an edited adapter.json accepted", SEALED, "not intact", "False"),
    ("a duplicate name in adapter.json", SEALED, "len(found) != len(pairs)", "False"),
    ("a library's panic that ends the command", READ, "type(problem).__name__ != 'PanicException'", "True"),
    ("an id of 2^31 for the library", HUB_TOKENIZER, "not 0 <= index < MOST_IDS", "index < 0"),
    ("two tokens with the same id", HUB_TOKENIZER, "len(by_id) < len(ids)", "False"),
    ("replacements that double a text eleven times", HUB_TOKENIZER, "1 + len(new)", "1"),
    ("tensors in GGUF that overlap", ("hub/gguf_file.py", "hub/test_gguf_file.py"),
        "one.start + one.size > other.start", "False"),
    ("flipped bits in a checkpoint accepted", ("training/checkpoints.py", "test_fuzz.py"),
        "seal != _seal(tensors, described)", "False"),
    ("an open quote that takes other rows in", "data/tables.py",
        "csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)",
        "csv.reader(lines, delimiter=delimiter, skipinitialspace=True)"),
    ("chunks that lose the common start", only(("classifier.py", "lab/test_predict.py"),
        "test_the_start_of_the_prompts_is_processed_once"), "cache or PromptCache(self.method_.decoder)",
        "PromptCache(self.method_.decoder)"),
    ("a long text that is found after rows were written", only(("classifier.py", "lab/test_predict.py"),
        "test_wrong_input_is_one_sentence_and_nothing_is_written"), "len(row.text.encode()) > most", "False"),
    ("subspaces that are divided by the larger dimension", "adapters/extract.py", "min(i, j)", "max(i, j)"),
    ("an effective rank of squares", "adapters/extract.py",
     "singular.double() / singular.double().sum()", "singular.double() ** 2 / (singular.double() ** 2).sum()"),
    ("a rank that is worse than the largest", ("lab/rank.py", "lab/test_rank.py"),
     "high >= 0", "low >= 0"),
    ("labels that are not permuted", ("lab/newtask.py", "lab/test_rank.py"), "task.answers[1:]", "task.answers[:-1]"),
    ("recall for precision", ("lab/evaluation.py", "lab/test_predict.py"),
        "(predicted, support, (support + predicted) / 2)", "(support, predicted, (support + predicted) / 2)"),
    ("a page with markup of the rows", ("lab/html_report.py", "lab/test_html_report.py"),
        "ImmutableSandboxedEnvironment(autoescape=True, trim_blocks=True, lstrip_blocks=True)",
        "ImmutableSandboxedEnvironment(autoescape=False, trim_blocks=True, lstrip_blocks=True)"),
    ("a transposed confusion matrix", "lab/statistics.py", "counts[label, answer]",
        "counts[answer, label]"),
    ("rows of any length", "data/tables.py", "len(values) != len(columns)", "False"),
    ("numbers in the order of strings", "data/table_tasks.py", "found.sort(key=float)", "found.sort()"),
    ("labels of two types", "data/table_tasks.py", "kind != first", "False"),
    ("parts without their share of each class", ("data/tasks.py", "data/test_table_tasks.py"),
        "sorted(ranked, key=lambda ranked: ranked[0])", "ranked"),
    ("a temperature that overflows", "generation.py", "logits - highest", "logits"),
    ("decoding by the weights before a training step", "fast/decoding.py", "_prepared[decoder][0] != state", "False"),
    ("decoding without the update of an adapter", "fast/decoding.py",
        'one.merged() if hasattr(one, "merged") else one', "one"),
    ("4 bits without their offset", "quantised.py", "groups.mul_(scale).add_(self.offset[rows].float()[..., None])",
        "groups.mul_(scale)"),
    ("the two codes of a byte in the other order", "quantised.py", "(pairs & 15, pairs >> 4)",
        "(pairs >> 4, pairs & 15)"),
    ("a quantised weight that seems to change", "quantised.py", "func._schema.is_mutable and isinstance(args[0], cls)",
        "False"),
    ("dequantised matrices kept for the backward pass", ("fast/linear.py", "test_quantised.py"),
        "isinstance(weight, Quantised) or (ONEDNN and _supported(x, weight, bias))",
        "ONEDNN and _supported(x, weight, bias)"),
    ("offsets of torch's 4-bit kernel without the 8", ("fast/decoding.py", "test_quantised.py"),
        "offset + 8 * scale", "offset"),
    ("a truncated delta accepted", "runtime/delta.py",
        "len(unpacked) != size or not unpacker.eof or unpacker.unused_data",
        "len(unpacked) != size or unpacker.unused_data"),
    ("trailing bytes after a delta", "runtime/delta.py",
        "len(unpacked) != size or not unpacker.eof or unpacker.unused_data",
        "len(unpacked) != size or not unpacker.eof"),
    ("a decompression bomb", "runtime/delta.py", "unpacker.decompress(stored.numpy().data, size + 1)",
        "unpacker.decompress(stored.numpy().data)"),
    ("bytes that are not sorted by significance", "runtime/delta.py", "difference.reshape(-1, tensor.element_size()).T",
        "difference.reshape(tensor.element_size(), -1)"),
    ("a base not recognised after a cast", FINGERPRINT, "CASTS", "[tensor.dtype]", "_record"),
    ("a changed weight not detected", FINGERPRINT,
        "f'{name} {tensor.dtype} {zlib.crc32(tensor_bytes(tensor).data):08x}'", "f'{name} {tensor.dtype}'"),
    ("a cache of other weights accepted", FINGERPRINT, "cached['files'] == stamp", "stamp"),
    ("a cast accepted as the weights of the file", FINGERPRINT, "_read_from_file(source)", "pass"),
    ("layers with and without rotary positions exchanged", FAMILY, "not flag", "flag"),
    ("YaRN without its attention factor", FAMILY, "scale(1.0)", "1.0"),
    ("Qwen's rows in the order of a Llama", ("hub/gguf.py", "hub/test_llama_cpp.py"), "{}", "LLAMA.interleaved"),
    ("a prefix under a window exported to peft",
        only(("hub/peft.py", FAMILY[1]), "test_a_prefix_of_a_sliding_decoder_is_not_for_peft"),
        "config.window is not None", "False"),
    ("a hard prompt that no window passes over", ("adapt/in_context.py", WINDOWED.format("in context")),
        "KeyValues(self.keys, self.values, windowed=True)", "KeyValues(self.keys, self.values, windowed=False)"),
    ("a soft prompt that no window passes over", ("decoder.py", WINDOWED.format("soft prompt, of words")),
        "KeyValues(torch.stack(keys), torch.stack(values), windowed=True)",
        "KeyValues(torch.stack(keys), torch.stack(values), windowed=False)"),
    ("layers and sides exchanged in peft's prefix", PEFT, "'L sides G P K -> P (L sides G K)'",
        "'L sides G P K -> P (sides L G K)'"),
    ("a gate that peft lacks", only(PEFT, "test_what_pefts_format_cannot_express_is_refused_and_nothing_is_written"),
        "'gate' in state", "False"),
    ("unshifted positions that peft lacks",
        only(PEFT, "test_what_pefts_format_cannot_express_is_refused_and_nothing_is_written"),
        "not method.shift_positions", "False"),
    ("an alpha that forgets the root of the rank", PEFT_LORA, "math.sqrt(rank) if stabilised else float(rank)",
        "float(rank)"),
    ("A and B of an embedding exchanged for peft", PEFT_LORA, "{'b': 'lora_embedding_A', 'a': 'lora_embedding_B'}",
        "{'a': 'lora_embedding_A', 'b': 'lora_embedding_B'}"),
    ("a rank that the pattern does not give",
        only(PEFT_LORA, "test_settings_that_minillm_does_not_compute_with_are_refused"),
        "rank != len(factors['a'])", "rank is None"),
    ("another base accepted for a peft adapter", only(PEFT_LORA, "test_tensors_that_do_not_fit_are_refused_by_name"),
        "not torch.equal(tensor.to(matrix.weight), matrix.weight)",
        "False"),
    ("a user-defined token exported as control", GGUF_TOKENIZER, "USER_DEFINED", "CONTROL"),
    ("an exported byte token of another type", only(GGUF_TOKENIZER, "test_llama_cpp_decodes_the_bytes_of_a_character"),
        "BYTE", "NORMAL"),
    ("merges that SentencePiece would also make", GGUF_PIECES, "(left, right) not in present", "False"),
    ("scores that rise in the order of the merges", (GGUF_PIECES[0], GGUF_TOKENIZER[1]), "-float(len(scores))",
        "float(len(scores))"),
    ("a first space that is not added", GGUF_PIECES,
        "normalizers.Sequence([normalizers.Prepend('▁'), replace]) if space else replace",
        "normalizers.Sequence([normalizers.Prepend('▁'), replace]) if not space else replace"),
    ("a scale that llama.cpp does not know", GGUF_LORA, "matrix.scale * len(a) / method.alpha * b", "b"),
    ("columns of B in the place of others", GGUF_LORA, "start += b.shape[1]", "start += 0"),
    ("an exported bos that is always added", GGUF_TOKENIZER, "tokenizer.starts_with_bos", "tokenizer.bos is not None"),
    ("the blocks of c_attn in reversed order", PEFT_LORA, "*rows", "*reversed(rows)", "_update"),
    ("a cache without the last token", ACTIVATIONS, "end + 1", "end"),
    ("a stage above the norm", ACTIVATIONS, "{'decoder.norm': layers, 'decoder.head': layers + 1}",
        "{'decoder.norm': layers + 1, 'decoder.head': layers + 1}"),
    ("frozen layers that run every epoch", ACTIVATIONS,
        "[row for row in dict.fromkeys(map(tuple, rows)) if row not in self._rows]",
        "[row for row in dict.fromkeys(map(tuple, rows))]"),
    ("a trained block that is left out", ACTIVATIONS, "self.start", "self.start + 1", "features"),
    ("a write to frozen layers not detected", ACTIVATIONS, "tensor.data_ptr(), tensor.dtype, tensor._version",
        "tensor.data_ptr(), tensor.dtype"),
    ("a change of precision not detected", ACTIVATIONS,
        "[half, *((tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in tensors)]",
        "[*((tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in tensors)]"),
    ("a mean over padding", POOLING, "mask.to", "torch.ones_like(mask).to"),
    ("features of the block below", POOLING, "self.layer + 1", "self.layer"),
    ("a flipped bit accepted", STORE, "stored.get('sha256') != _seal(features, seconds)", "False"),
    ("a cache of another tokenizer accepted", STORE, "tokenizer_fingerprint", "None", "_description"),
    ("features with dropout", STORE, "decoder.eval()", "pass"),
    ("a loss without class weights", LOGISTIC, "each * F.cross_entropy(logits, targets, reduction='none')",
        "F.cross_entropy(logits, targets, reduction='none')"),
    ("labels of another piece", LOGISTIC, "other[piece]", "other[:len(features[piece])]"),
    ("a fit that continues from the last one", LOGISTIC, "torch.zeros(side.shape)", "side.detach().clone()"),
    ("a penalty on W of the plain features", LOGISTIC, "weight / spread", "weight", "objective"),
    ("a final norm without its bias", FINE_TUNE, "'norm.*'", "'norm.weight'"),
    ("classes in another order", FINE_TUNE, "rows[tokens]", "rows[sorted(tokens)]"),
    ("a learning rate without a schedule", LOOP, "rate_at(done, self.steps, self.settings)",
        "self.settings.learning_rate"),
    ("an optimizer step with a non-finite loss", LOOP, "not math.isfinite(loss)", "False"),
    ("a run that forgets its best epoch", LOOP,
     "self.learner.state() | {f'best.{name}': collected(tensor) for name, tensor in self.best.items()}",
        "self.learner.state()"),
    ("a run that starts its epoch again", LOOP, "self.steps_in_epoch * passes", "0"),
    ("an epoch too little patience", LOOP, "len(history.validation) > history.best_epoch + patience",
        "len(history.validation) >= history.best_epoch + patience"),
    ("a budget that ends nothing", LOOP, "history.forgetting.values()", "{}.values()"),
    ("half the penalty", ("training/learners.py", "training/test_loop.py"), "2 * self.settings.l2_base",
        "self.settings.l2_base"),
    ("the text on which forgetting is measured, replayed", "prompting/forgetting.py", "settings.seed ^ 2 ** 31",
        "settings.seed"),
    ("a mean over the targets of one process", JOB, "return gradients, numbers[0].item(), int(numbers[1].item())",
        "return gradients, total, count"),
    ("rows that two processes take", ("runtime/distributed.py", JOB[1]), "batch[process_number()::process_count()]",
        "batch[process_number():]"),
    ("a learner that ignores the schedule", LEARNER, "group['lr'] = rate", "pass"),
    ("numpy that does not clip", NUMPY, "clip_by_global_norm(self.gradients, self.settings.clip)", "self.gradients, 0"),
    ("numpy that predicts the token itself", NUMPY, "labels_BT[:, 1:]", "labels_BT[:, :-1]"),
    ("numpy that resumes at step 0", NUMPY, "Moments(mean, square, int(tensors['steps']))", "Moments(mean, square)"),
    ("weight decay of norms", "reference/adamw.py", "rate * decay if weight.ndim > 1 else 0.0", "rate * decay"),
    ("a file of options that overrules the command line", "runtime/options.py",
        "_read(command, found['config']) | found", "found | _read(command, found['config'])"),
    ("a truth value that is an integer", ("runtime/option.py", "runtime/test_options.py"),
        "type(value) not in types", "not isinstance(value, types)"),
    ("a dry run that removes the checkpoint", only(("lab/adapt.py", "test_cli.py"),
        "test_a_dry_run_keeps_the_results_that_it_would_overwrite"), "not self.options.dry_run", "True"),
    ("an interrupted adapter that is lost", only(("classifier.py", "adapters/test_commands.py"),
        "test_an_interrupt_saves_what_was_trained_so_far"), "lambda: on_trained(self)",
        "lambda: None"),
    ("a lens without the last norm", "play/look.py", "decoder.run_blocks(states, start=len(decoder.blocks))", "states"),
    ("attention without the rotation", "play/look.py", "decoder.encode_positions(hidden, positions)[1]", "None"),
    ("a prefix that is not scaled", "play/scaled.py",
        "attention.forward(hidden, others._replace(prefix=None)).lerp(out, self.scale)", "out"),
    ("a scale left by another client", "play/page.py", "self.models[adapter].scale = scale",
        "self.models[adapter].scale *= scale"),
    ("test problems of any size", ("lab/juggler.py", "lab/test_juggler.py"), "problem.answer in answers", "True"),
    ("a prefix that is not set apart", ("lab/attention.py", "lab/test_pictures.py"),
        "np.insert(weights, prefix, np.nan, 1)", "np.insert(weights, 0, np.nan, 1)"),
    ("any token accepted", "play/server.py", "compare_digest(headers.get('x-token', '').encode(), token.encode())",
        "True"),
    ("one tail for two", "lab/statistics.py", "min(one, two) + 1", "one + 1"),
    ("Bonferroni's factor in every step", "lab/statistics.py", "np.arange(len(p), 0, -1)", "len(p)"),
    ("no noise of seeds", "lab/statistics.py", "max(0.0, between)", "0.0"),
    ("any host accepted", "play/server.py", "(host := headers.get('host')) not in hosts",
        "(host := headers.get('host')) is None"),
]
# fmt: on
MUTATIONS = [mutation(*row) for row in _ROWS]
