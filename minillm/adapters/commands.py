"""`minillm adapter` and `minillm export`: work on adapter files, without training. No file is changed in place."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from minillm import hub
from minillm.adapt import Adaptation, LoRA
from minillm.adapt.description import DESCRIPTION, TENSORS, Usage, describe
from minillm.adapters.extract import Extracted, extract, resize
from minillm.adapters.load import load
from minillm.adapters.merge import merge, merge_rounding
from minillm.errors import InputError
from minillm.hub.gguf_export import export
from minillm.hub.gguf_lora import export_lora
from minillm.hub.options import BaseOptions
from minillm.hub.peft import export_peft, import_peft
from minillm.runtime.files import check_unused
from minillm.runtime.options import Directory, Positional
from minillm.runtime.reading import open_tensors
from minillm.tokenizer import Tokenizer


@dataclass(kw_only=True)
class AdapterOptions:
    """The adapter that a command works on."""

    adapter: Positional[Path]
    """The directory of the adapter."""


@dataclass(kw_only=True)
class OutputOptions:
    """The result of a command."""

    out: Path
    """The directory, or the GGUF file, to write."""
    overwrite: bool = False
    """Replace an existing file, or write to a directory that has files."""

    def __post_init__(self):
        check_unused(self.out, self.overwrite)


@dataclass(kw_only=True)
class RankOptions:
    """The rank of a low-rank approximation."""

    r: int | None = None
    """The rank of each update."""
    energy: float | None = None
    """Instead of a rank: the share of the squared norm of each update to keep, up to 1."""


@dataclass(kw_only=True)
class Inspect(AdapterOptions):
    """Print an adapter's method, options, tensors and size; `verify` checks them.

    Example: minillm adapter inspect my.adapter
    """

    def run(self) -> None:
        description = describe(self.adapter)
        size = sum(path.stat().st_size for path in self.adapter.iterdir())
        with open_tensors(self.adapter / TENSORS) as file:
            print(f"{description.method}, {size:,} bytes, saved by minillm {description.minillm}")
            print(f"options: {json.dumps(description.options)}")
            print(f"base: {len(description.base)} weights, identified by their sha256")
            for field in fields(Usage):
                if value := getattr(description, field.name):
                    print(f"{field.name.replace('_', ' ')}: {json.dumps(value, ensure_ascii=False)}")
            for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
                how = "difference to the base, in bytes" if name in description.differences else ""
                print(f"  {name}  {tuple(file.get_slice(name).get_shape())}  {how or file.get_slice(name).get_dtype()}")


@dataclass(kw_only=True)
class Diff(BaseOptions):
    """Compare two adapters of one base: their options and the norm of the difference of each tensor.

    Example: minillm adapter diff one.adapter two.adapter
    """

    adapter: Positional[Path]
    """The directory of the first adapter."""
    other: Positional[Path]
    """The directory of the second adapter."""

    def run(self) -> None:
        decoder, _ = self.load_base()
        one, two = (load(decoder, place, allow_noop=True) for place in (self.adapter, self.other))
        print(f"{type(one).__name__} {json.dumps(one.options())}\n{type(two).__name__} {json.dumps(two.options())}")
        left, right = one.state(), two.state()
        for name in dict.fromkeys([*left, *right]):
            if name not in left or name not in right:
                print(f"  {name}  only in {self.adapter if name in left else self.other}")
            elif left[name].shape != right[name].shape:
                print(f"  {name}  shapes {tuple(left[name].shape)} and {tuple(right[name].shape)}")
            else:
                distance, norm = (left[name] - right[name]).double().norm(), left[name].double().norm()
                print(f"  {name}  |difference| {distance:.4g}, |{self.adapter.name}| {norm:.4g}")


@dataclass(kw_only=True)
class Verify(AdapterOptions, BaseOptions):
    """Check that an adapter is complete and loads on its base.

    Example: minillm adapter verify my.adapter --base tiny
    """

    def run(self) -> None:
        method, _ = _adapted(self, self.adapter)
        print(f"OK: {type(method).__name__}, {len(method.state())} tensors, loads on {self.base}")


@dataclass(kw_only=True)
class Merge(AdapterOptions, OutputOptions, BaseOptions):
    """Merge an adapter into its base, write the model in Hugging Face's layout, and print the rounding errors.

    Example: minillm adapter merge my.adapter --out merged
    """

    def run(self) -> None:
        method, tokenizer = _adapted(self, self.adapter)
        hub.save(merge(method), tokenizer, self.out)
        probe = torch.arange(min(16, method.config.vocabulary))[None]
        for dtype, change in merge_rounding(method, probe).items():
            name = str(dtype).removeprefix("torch.")
            print(f"logits of the merged model in {name} differ from base and adapter by up to {change:.3g}")
        print(f"saved: {self.out}")


@dataclass(kw_only=True)
class Extract(RankOptions, OutputOptions, BaseOptions):
    """Approximate a fine-tuned model by the nearest LoRA, and print the approximation error.

    Example: minillm adapter extract tuned --r 8 --out extracted.adapter
    """

    tuned: Positional[str]
    """The fine-tuned model (a directory or .gguf file), or the directory of a FineTune adapter."""

    def run(self) -> None:
        decoder, tokenizer = self.load_base()
        is_adapter = (Path(self.tuned) / DESCRIPTION).exists()
        tuned = load(decoder, self.tuned, tokenizer=tokenizer) if is_adapter else hub.load(self.tuned)[0]
        found = extract(decoder, tuned, r=self.r, energy=self.energy)
        if isinstance(tuned, Adaptation):
            found.lora.usage = tuned.usage
        _save(found, tokenizer, self.out)


@dataclass(kw_only=True)
class Resize(AdapterOptions, RankOptions, OutputOptions, BaseOptions):
    """Change the rank of a LoRA, and print the approximation error.

    Example: minillm adapter resize my.adapter --r 4 --out small.adapter
    """

    def run(self) -> None:
        method, tokenizer = _adapted(self, self.adapter)
        if not isinstance(method, LoRA):
            raise InputError(f"{self.adapter} is a {type(method).__name__}; only the rank of a LoRA can be changed")
        found = resize(method, r=self.r, energy=self.energy)
        found.lora.usage = method.usage
        _save(found, tokenizer, self.out)


def _adapted(options: BaseOptions, adapter: Path) -> tuple[Adaptation, Tokenizer | None]:
    """The adapter on its base, and the tokenizer of the base."""
    decoder, tokenizer = options.load_base()
    return load(decoder, adapter, tokenizer=tokenizer), tokenizer


def _save(found: Extracted, tokenizer: Tokenizer | None, out: Path) -> None:
    found.lora.save(out, tokenizer=tokenizer)
    errors, mean = found.errors, sum(found.errors.values()) / len(found.errors)
    worst = max(errors, key=lambda path: errors[path])
    print(f"{len(errors)} matrices; relative error of dW: {mean:.1%} on average, {errors[worst]:.1%} at most ({worst})")
    if found.left_out:
        print(f"not in the LoRA: {len(found.left_out)} changed parameters, the first is {found.left_out[0]}")
    print(f"saved: {out}")


@dataclass(kw_only=True)
class ExportPeft(AdapterOptions, OutputOptions, BaseOptions):
    """Convert an adapter to PEFT's format: adapter_config.json and adapter_model.safetensors.

    Example: minillm adapter export-peft my.adapter --out peft.adapter
    """

    def run(self) -> None:
        export_peft(_adapted(self, self.adapter)[0], self.out, base_name=self.base)
        print(f"saved: {self.out}")


@dataclass(kw_only=True)
class ExportGGUF(AdapterOptions, OutputOptions, BaseOptions):
    """Write a LoRA as a GGUF file, for llama.cpp's --lora with the exported base.

    Example: minillm adapter export-gguf my.adapter --out my-lora.gguf
    """

    def run(self) -> None:
        export_lora(_adapted(self, self.adapter)[0], self.out)
        print(f"saved: {self.out}")


@dataclass(kw_only=True)
class ImportPeft(AdapterOptions, OutputOptions, BaseOptions):
    """Convert an adapter from PEFT's format.

    Example: minillm adapter import-peft peft.adapter --out my.adapter
    """

    def run(self) -> None:
        decoder, tokenizer = self.load_base()
        import_peft(decoder, self.adapter).save(self.out, tokenizer=tokenizer)
        print(f"saved: {self.out}")


@dataclass(kw_only=True)
class Export(OutputOptions):
    """Write a model, merged with an adapter if one is given, as a GGUF file in float32.

    Example: minillm export smollm2-135m-instruct --adapter my.adapter --out model.gguf
    """

    base: Positional[str]
    """A pulled model, hf:NAME, a directory in Hugging Face's layout, or a .gguf file; not tiny."""
    adapter: Directory | None = None
    """An adapter of the base."""

    def run(self) -> None:
        decoder, tokenizer = hub.load(self.base)
        if self.adapter is not None:
            decoder = merge(load(decoder, self.adapter, tokenizer=tokenizer))
        export(decoder, tokenizer, self.out)
        print(f"saved: {self.out}")
