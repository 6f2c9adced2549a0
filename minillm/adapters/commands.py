"""`minillm adapter` and `minillm export`: adapter files without training. No file is changed in place."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from minillm import hub
from minillm.adapt import Adaptation, LoRA
from minillm.adapt.description import DESCRIPTION, TENSORS, describe
from minillm.adapters.extract import Extracted, extract, resize
from minillm.adapters.load import load
from minillm.adapters.merge import merge, merge_rounding
from minillm.errors import InputError
from minillm.hub.gguf_export import export
from minillm.hub.peft import export_peft, import_peft
from minillm.runtime.options import Positional
from minillm.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Print what an adapter is, from its files alone: method, options, tensors, bytes."""

    adapter: Positional[Path]
    """The adapter's directory."""

    def run(self) -> None:
        description = describe(self.adapter)
        size = sum(path.stat().st_size for path in self.adapter.iterdir())
        print(f"{description.method}, {size:,} bytes, by minillm {description.minillm}")
        print(f"options: {json.dumps(description.options)}")
        print(f"base: {len(description.base)} weights, known by their sha256")
        with safe_open(str(self.adapter / TENSORS), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
                how = "difference to the base" if name in description.differences else file.get_slice(name).get_dtype()
                print(f"  {name}  {tuple(file.get_slice(name).get_shape())}  {how}")


@dataclass(frozen=True, kw_only=True)
class OnBase:
    """What the commands that load a base have in common."""

    base: str = "smollm2-135m-instruct"
    """The adapter's base: a pulled name, tiny, a directory or a .gguf file."""

    def load(self, adapter: Path) -> tuple[Adaptation, Tokenizer | None]:
        """The adapter on its base, and the base's tokenizer."""
        decoder, tokenizer = hub.load(self.base)
        return load(decoder, adapter, tokenizer=tokenizer), tokenizer


@dataclass(frozen=True, kw_only=True)
class Diff(OnBase):
    """Compare two adapters of one base: their options, and how far each tensor of one is from the other's."""

    adapter: Positional[Path]
    """An adapter's directory."""
    other: Positional[Path]
    """Another one's."""

    def run(self) -> None:
        decoder, _ = hub.load(self.base)
        one, two = (load(decoder, place, allow_noop=True) for place in (self.adapter, self.other))
        print(f"{type(one).__name__} {json.dumps(one.options())}\n{type(two).__name__} {json.dumps(two.options())}")
        left, right = one.state(), two.state()
        for name in dict.fromkeys([*left, *right]):
            if name not in left or name not in right:
                print(f"  {name}  only in {self.adapter if name in left else self.other}")
            elif left[name].shape != right[name].shape:
                print(f"  {name}  {tuple(left[name].shape)} and {tuple(right[name].shape)}")
            else:
                distance, norm = (left[name] - right[name]).double().norm(), left[name].double().norm()
                print(f"  {name}  |difference| {distance:.4g}, |{self.adapter.name}| {norm:.4g}")


@dataclass(frozen=True, kw_only=True)
class Verify(OnBase):
    """Load an adapter strictly onto its base, and print what it is there."""

    adapter: Positional[Path]
    """The adapter's directory."""

    def run(self) -> None:
        method, _ = self.load(self.adapter)
        print(f"{self.adapter} is whole: a {type(method).__name__} of {len(method.state())} tensors on {self.base}")


@dataclass(frozen=True, kw_only=True)
class Merge(OnBase):
    """Write base and adapter as one model, a directory in Hugging Face's layout, and print what rounding it costs."""

    adapter: Positional[Path]
    """The adapter's directory."""
    target: Positional[Path]
    """The directory to write."""

    def run(self) -> None:
        method, tokenizer = self.load(self.adapter)
        hub.save(merge(method), tokenizer, self.target)
        probe = torch.arange(min(16, method.config.vocabulary))[None]
        for dtype, change in merge_rounding(method, probe).items():
            name = str(dtype).removeprefix("torch.")
            print(f"held in {name}, merging moves a logit of the probe by {change:.3g} at most")
        print(f"written: {self.target}")


@dataclass(frozen=True, kw_only=True)
class Extract(OnBase):
    """Find the LoRA that comes nearest to a fully fine-tuned model, and print what it leaves out."""

    tuned: Positional[str]
    """A model's directory or .gguf file, or the directory of a FineTune adapter."""
    target: Positional[Path]
    """The adapter's directory to write."""
    r: int | None = None
    """The rank of each update."""
    energy: float | None = None
    """Or the share of each update's energy to keep, up to 1."""

    def run(self) -> None:
        decoder, tokenizer = hub.load(self.base)
        is_adapter = (Path(self.tuned) / DESCRIPTION).exists()
        tuned = load(decoder, self.tuned, tokenizer=tokenizer) if is_adapter else hub.load(self.tuned)[0]
        found = extract(decoder, tuned, r=self.r, energy=self.energy)
        _save(found, tokenizer, self.target)


@dataclass(frozen=True, kw_only=True)
class Resize(OnBase):
    """Write a LoRA at another rank, and print what it leaves out."""

    adapter: Positional[Path]
    """The LoRA's directory."""
    target: Positional[Path]
    """The directory to write."""
    r: int | None = None
    """The new rank."""
    energy: float | None = None
    """Or the share of each update's energy to keep, up to 1."""

    def run(self) -> None:
        method, tokenizer = self.load(self.adapter)
        if not isinstance(method, LoRA):
            raise InputError(f"{self.adapter} is a {type(method).__name__}; a LoRA has a rank that can be changed")
        _save(resize(method, r=self.r, energy=self.energy), tokenizer, self.target)


def _save(found: Extracted, tokenizer: Tokenizer | None, target: Path) -> None:
    found.lora.save(target, tokenizer=tokenizer)
    errors, mean = found.errors, sum(found.errors.values()) / len(found.errors)
    worst = max(errors, key=lambda path: errors[path])
    print(f"{len(errors)} matrices; of |dW| is left out {mean:.1%} on average, {errors[worst]:.1%} at most ({worst})")
    if found.left_out:
        print(f"changed, but in no LoRA matrix: {len(found.left_out)} parameters, {found.left_out[0]} first")
    print(f"written: {target}")


@dataclass(frozen=True, kw_only=True)
class ExportPeft(OnBase):
    """Write an adapter in peft's format."""

    adapter: Positional[Path]
    """The adapter's directory."""
    target: Positional[Path]
    """The directory to write: adapter_config.json and adapter_model.safetensors."""

    def run(self) -> None:
        export_peft(self.load(self.adapter)[0], self.target, base_name=self.base)
        print(f"written: {self.target}")


@dataclass(frozen=True, kw_only=True)
class ImportPeft(OnBase):
    """Write one of peft's adapters as minillm's."""

    source: Positional[Path]
    """The directory with adapter_config.json and adapter_model.safetensors."""
    target: Positional[Path]
    """The adapter's directory to write."""

    def run(self) -> None:
        decoder, tokenizer = hub.load(self.base)
        import_peft(decoder, self.source).save(self.target, tokenizer=tokenizer)
        print(f"written: {self.target}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model, merged with an adapter if one is given, as a GGUF file in float32."""

    model: Positional[str]
    """A pulled name, tiny, a directory in Hugging Face's layout, or a .gguf file."""
    gguf: Path
    """The file to write."""
    adapter: Path | None = None
    """The adapter's directory."""

    def run(self) -> None:
        decoder, tokenizer = hub.load(self.model)
        if self.adapter is not None:
            decoder = merge(load(decoder, self.adapter, tokenizer=tokenizer))
        export(decoder, tokenizer, self.gguf)
        print(f"written: {self.gguf}")
