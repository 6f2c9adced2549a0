"""Ways to break the methods of adaptation and what they stand on: each of the twelve laws is seen to fail.

As in `mutations.py`, whose list these lengthen; what has to fail is one cell of `laws.py`, a law for a method.
"""

from tests.mutations import Mutation


def _law(number, method, what, file, old, new, style="Llama"):
    return Mutation(what, file, old, new, f"laws.py::test_the_law_holds[{number}-{method}-{style}]")


# fmt: off
LAW_MUTATIONS = [
    # 1: what is frozen stays, and so does the base
    _law(1, "LoRA", "a base that is trained along", "adapt/surgery.py",
         "nn.Parameter(tensor.detach(), requires_grad=False)", "nn.Parameter(tensor.detach())"),
    _law(1, "last block", "a base that is written in place", "adapt/surgery.py",
         "nn.Parameter(parameter.detach().clone())", "nn.Parameter(parameter.detach())"),
    _law(1, "LoRA", "a body that is the base itself", "adapt/surgery.py",
         "body = copy.deepcopy(decoder, shared)", "body = decoder.requires_grad_(False)"),
    _law(1, "soft prompt, random", "flags of the base that are switched off", "adapt/surgery.py",
         "for tensor in decoder.parameters()}", "for tensor in decoder.requires_grad_(False).parameters()}"),
    # 2: what is trainable is reached, and moves
    _law(2, "LoRA", "A and B both zero", "adapt/lora.py",
         "nn.init.kaiming_uniform_(a, a=math.sqrt(5))", "a"),
    _law(2, "soft prompt, random", "a prompt's keys and values kept across steps", "adapt/soft_prompt.py",
         "return self.decoder.keys_values(self.prompt[None].to(self.decoder.embed.weight.dtype))",
         "self.kept = getattr(self, 'kept', None) or self.decoder.keys_values(self.prompt[None])\n"
         "        return self.kept"),
    _law(2, "prefix, by an MLP", "a prefix kept from an evaluation", "adapt/prefix_tuning.py",
         "return (self.keys, self.values) if self.hidden is None else self.mlp()",
         "self.kept = getattr(self, 'kept', None) or tuple(side.detach() for side in self.mlp())\n"
         "        return self.kept"),
    _law(2, "prefix, gated", "a gate that no gradient passes", "fast/attention.py",
         "prefix.gate.tanh()", "prefix.gate.tanh().detach()"),
    _law(2, "DoRA", "a magnitude that no gradient reaches", "adapt/dora.py",
         "turned * (self.magnitude / self._norms())", "turned * (self.magnitude.detach() / self._norms())"),
    # 3: modes and merging change no weight
    _law(3, "LoRA", "a merge without the scale", "adapt/lora.py", "return self.scale * self.b @ self.a",
         "return self.b @ self.a"),
    _law(3, "PiSSA", "a merge of the trained half alone", "adapt/pissa.py",
         "a, b = self.factors()\n        return self.scale * b @ a", "return self.scale * self.b @ self.a"),
    _law(3, "DoRA", "a merge that forgets to stretch", "adapt/dora.py",
         "return stretch * (self.weight + self.scale * self.b @ self.a) - self.weight",
         "return self.scale * self.b @ self.a"),
    _law(3, "LoRA, every matrix", "a merge in the method's own body", "adapters/merge.py",
         "decoder = copy.deepcopy(method.decoder)", "decoder = method.decoder"),
    _law(3, "prefix, random", "a merge that drops the prefix", "adapters/merge.py",
         "if method.prefix() is not None:", "if False:"),
    # 4: a row says the same alone and padded
    _law(4, "LoRA", "a method that loses the mask", "adapt/method.py",
         "prefix=self.prefix(), mask=mask)", "prefix=self.prefix())"),
    _law(4, "last block", "fine-tuning that loses the mask", "adapt/fine_tune.py",
         "hidden = self.decoder.features(ids, mask=mask)", "hidden = self.decoder.features(ids)"),
    _law(4, "frozen head", "a pooling that reads padding", "adapt/frozen_head.py",
         "real = torch.where(mask, places,", "real = torch.where(mask | True, places,"),
    _law(4, "frozen head", "features without the mask", "adapt/frozen_head.py",
         "stop=recipe.stage(decoder), mask=mask)", "stop=recipe.stage(decoder))"),
    _law(4, "soft prompt, vocabulary", "padding that shifts positions", "decoder.py",
         "self._positions(hidden, prefix, cache, mask)", "self._positions(hidden, prefix, cache, None)"),
    _law(4, "prefix, random", "a prefix that the mask hides", "ops/attention.py", "value=True", "value=False"),
    # 5: nothing depends on what comes later
    _law(5, "LoRA", "a text that is read backwards too", "fast/attention.py", "is_causal=square,", "is_causal=False,"),
    _law(5, "prefix, random", "a prefix that shows the next token", "ops/attention.py",
         ".tril(keys - queries)", ".tril(keys - queries + 1)"),
    _law(5, "soft prompt, random", "a prompt that lifts the mask", "fast/attention.py",
         "unmasked = square or (mask is None and queries == 1)", "unmasked = mask is None"),
    # 6: cached, recomputed and accumulated are exact
    _law(6, "LoRA", "a cache that forgets", "generation.py",
         "return self.key[:, :, : self.length], self.value[:, :, : self.length]",
         "return self.key[:, :, now : self.length], self.value[:, :, now : self.length]"),
    _law(6, "in context", "cached tokens that take no positions", "decoder.py",
         "torch.arange(start + cached, start + tokens,", "torch.arange(start, start + tokens - cached,"),
    _law(6, "prefix, of words", "a prompt that is not there when blocks are run again", "decoder.py",
         "checkpoint(ops.bound(self.blocks[index]), hidden, inputs,",
         "checkpoint(ops.bound(self.blocks[index]), hidden, BlockInputs(rotation, mask),"),
    _law(6, "LoRA", "a mean of means", "training/learners.py", "summed.backward()", "(summed / counted).backward()"),
    _law(6, "last block", "the last batch alone", "training/learners.py",
         "summed.backward()", "self.optimizer.zero_grad()\n            summed.backward()"),
    # 7: what is saved is the state, for this base alone
    _law(7, "prefix, by an MLP", "a state that keeps the MLP", "adapt/prefix_tuning.py",
         "keys, values = self._sides()\n        named",
         "return super().state()\n        keys, values = self._sides()\n        named"),
    _law(7, "LoRA", "a fingerprint that skips a tensor", "runtime/fingerprint.py",
         "    for name, tensor in tensors.items():\n        checksum",
         "    for name, tensor in tensors.items():\n        if name.endswith('up.weight'):\n"
         "            continue\n        checksum"),
    _law(7, "PiSSA", "a PiSSA without its first factors in the file", "adapt/pissa.py",
         "return super().state() | {\"a\": a.detach(), \"b\": b.detach()}",
         "return super().state() | {\"a\": torch.cat((self.a, self.a)).detach(), \"b\": b.detach()}"),
    _law(7, "soft prompt, of words", "a state in single precision", "adapt/method.py",
         "return {name: parameter.detach() for name, parameter in self.trainable().items()}",
         "return {name: parameter.detach().float() for name, parameter in self.trainable().items()}"),
    _law(7, "prefix, unshifted", "a file that forgets whether positions are shifted", "adapt/prefix_tuning.py",
         "\"gated\", \"shift_positions\")", "\"gated\")"),
    _law(7, "LoRA", "an alpha that is not in the file", "adapt/low_rank.py",
         "return asdict(self.low_rank)", "return asdict(self.low_rank) | {\"alpha\": 1}"),
    _law(7, "last block", "a difference that is taken for the weights", "runtime/delta.py",
         ".reshape(-1) ^ _bits(base)", ".reshape(-1)"),
    # 8: what starts as the base is the base, and what does not is not
    _law(8, "LoRA", "a B that is not zero at the start", "adapt/lora.py",
         "\"b\": b}", "\"b\": b + 1}"),
    _law(8, "prefix, gated", "a gate that is not zero at the start", "adapt/prefix_tuning.py",
         "keys.new_zeros(self.config.layers, self.config.heads)",
         "keys.new_ones(self.config.layers, self.config.heads)"),
    _law(8, "PiSSA", "a PiSSA without -B0 A0", "adapt/pissa.py",
         "torch.cat((self.b, self.first_b), 1)", "torch.cat((self.b, 0 * self.first_b), 1)"),
    _law(8, "DoRA", "magnitudes that start at one", "adapt/dora.py",
         "self.trained(self._norms() if start is None", "self.trained(self._norms() ** 0 if start is None"),
    _law(8, "LoRA and a prefix", "a stack without its prefix", "adapt/stack.py",
         "return self.before.prefix()", "return None"),
    _law(8, "all weights", "copies that are not what they copy", "adapt/surgery.py",
         "nn.Parameter(parameter.detach().clone())", "nn.Parameter(parameter.detach() * (1 + 1e-12))"),
    # 9: a hard prompt is its keys and values is a soft prompt of its embeddings
    _law(9, "in context", "a hard prompt that takes no positions", "adapt/in_context.py",
         "return KeyValues(self.keys, self.values)", "return KeyValues(self.keys, self.values, takes_positions=False)"),
    _law(9, "soft prompt, of words", "words in another order", "adapt/soft_prompt.py",
         "self.init, length)[0]]", "self.init, length)[0].flip(0)]"),
    _law(9, "prefix, of words", "keys and values exchanged", "adapt/prefix_tuning.py",
         "return seen.keys[:, 0].contiguous(), seen.values[:, 0].contiguous()",
         "return seen.values[:, 0].contiguous(), seen.keys[:, 0].contiguous()"),
    _law(9, "prefix, of words", "a prompt recorded in the first layer alone", "decoder.py",
         "prefix.layer(index)", "prefix.layer(0)"),
    # 10: a probe on stored features is an output layer on a frozen body
    _law(10, "frozen head", "features of the first token", "adapt/frozen_head.py",
         "None,\n        pooling: str = \"last\"", "None,\n        pooling: str = \"first\""),
    _law(10, "frozen head", "features before the last norm", "adapt/frozen_head.py",
         "features = text_features(self.decoder, ids, self.recipe, mask)",
         "features = self.decoder.run_blocks(self.decoder.embed(ids), stop=self.config.layers)[:, -1]"),
    # 11: low-rank updates add exactly, and have their rank
    _law(11, "LoRA", "A added to A, and B to B", "adapters/algebra.py",
         "(torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1))",
         "(sum(a for a, _ in parts), sum(b for _, b in parts))"),
    _law(11, "LoRA", "scales that are not folded", "adapters/algebra.py",
         "state[\"b\"] * (factor * matrix.scale)", "state[\"b\"] * factor"),
    _law(11, "LoRA", "an update of full rank", "adapt/lora.py",
         "return self.scale * self.b @ self.a",
         "return self.scale * self.b @ self.a + 0.01 * self.b.new_ones(self.weight.shape).tril()"),
    _law(11, "LoRA", "a first gradient of A", "fast/lora.py",
         "(gradient @ b).mul_(ctx.scale)", "(gradient @ (b + 1)).mul_(ctx.scale)"),
    # 12: a prefix takes its share of the attention, or adds to it by its gate
    _law(12, "prefix, gated", "a gate without its tanh", "fast/attention.py", "prefix.gate.tanh()", "prefix.gate"),
    _law(12, "prefix, zero", "a prefix after the text", "ops/attention.py",
         "zip(before, (key, value), strict=True)", "zip((key, value), before, strict=True)"),
    _law(12, "soft prompt, random", "a softmax over the prefix and the text apart", "ops/attention.py",
         "before = (side.expand(key.shape[0], -1, -1, -1).to(key.dtype) for side in (prefix.key, prefix.value))",
         "before = (side.expand(key.shape[0], -1, -1, -1) * by for side, by in ((prefix.key, 0), (prefix.value, 1)))"),
]
# fmt: on
