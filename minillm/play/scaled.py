"""A method whose effect is scaled by s: W + s dW for a change of the weights, and the attention to a prefix times s.

Every layer is linear in its own parameters, so the output of W + s dW is (1 - s) times that of W plus s times that of
W + dW: for LoRA, DoRA, PiSSA and trained copies alike. With a prefix it is Attn(text) + s (Attn(prefix, text) -
Attn(text)): s multiplies the prefix's softmax mass, or tanh(gate). The text keeps its positions.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minillm.adapt.method import Method
from minillm.decoder import Attention, Decoder
from minillm.key_values import BlockInputs


class ScaledMethod:
    """A method as a language model, whose effect is scaled by `scale`: 1 is the method itself, without hooks.

    The method's decoder is changed, and must not be used elsewhere.
    """

    def __init__(self, base: Decoder, method: Method):
        self.decoder, self.prefix, self._scale = method.decoder, method.prefix, 1.0
        self._scaled, self._hooks = list[tuple[nn.Module, Callable]](), list[RemovableHandle]()
        for path, module in self.decoder.named_modules():
            if isinstance(module, Attention):
                self._scaled.append((module, self._prefix_scaled))
            elif _own(module) != _own(there := base.get_submodule(path)):
                self._scaled.append((module, partial(self._change_scaled, there)))

    @property
    def scale(self) -> float | int:
        return self._scale

    @scale.setter
    def scale(self, scale: float | int) -> None:
        self._scale = scale
        if (scale != 1) == bool(self._hooks):
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = [module.register_forward_hook(hook) for module, hook in self._scaled] if scale != 1 else []

    def _change_scaled(self, base: nn.Module, module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        return base(*inputs).lerp(out, self.scale)

    def _prefix_scaled(self, attention: Attention, inputs: tuple[Tensor, BlockInputs], out: Tensor) -> Tensor:
        hidden, others = inputs
        if others.prefix is None:
            return out
        if others.cache is not None:  # the same keys and values are cached again, at the same places
            others.cache.length -= hidden.shape[1]
        return attention.forward(hidden, others._replace(prefix=None)).lerp(out, self.scale)


def _own(module: nn.Module) -> dict[str, int]:
    """Where the parameters of a module itself are in memory."""
    return {name: parameter.data_ptr() for name, parameter in module.named_parameters(recurse=False)}
