"""The peers' contestants: transformers, peft and scikit-learn, used as in their documentation, on the same weights.

`tuned` gives a peer minillm's settings that need no change of the peer: freed memory is kept, and the head runs only at
the last positions. Rows are padded on the right: with padding on the left, peft's virtual tokens would be separated
from the text by a different distance in each row.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on the disk

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from sklearn.linear_model import LogisticRegression

from benchmarks.reviews import BASE, Work
from minillm.data.batches import pad_left, pad_right
from minillm.hub.huggingface import LLAMA
from minillm.hub.pull import pull
from minillm.runtime.cache import cache_directory
from minillm.runtime.device import autocast, keep_freed_memory
from minillm.training.schedule import TrainingSettings, rate_at

Model = torch.nn.Module


def last_two_blocks(model: Model) -> Model:
    layers = model.config.num_hidden_layers
    trained = (f"model.layers.{layers - 2}.", f"model.layers.{layers - 1}.", "model.norm.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return model


METHODS: dict[str, Callable[[Model], Model]] = {
    "lora": lambda model: get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    ),
    # Initialised from text too: with minillm's vectors.
    "soft-prompt": lambda model: get_peft_model(
        model, PromptTuningConfig(num_virtual_tokens=10, task_type="CAUSAL_LM")
    ),
    "prefix": lambda model: get_peft_model(
        model, PrefixTuningConfig(num_virtual_tokens=10, task_type="CAUSAL_LM", init_weights="zero")
    ),
    "last-blocks": last_two_blocks,
    "full": lambda model: model,
}
# The peers' parameter names to minillm's; the rules are applied in order.
NAMES = (
    ("base_model.model.", ""),
    ("model.layers.", "blocks."),
    *LLAMA.outer.items(),
    *LLAMA.inner.items(),
    ("lora_A.default.weight", "a"),
    ("lora_B.default.weight", "b"),
    ("prompt_encoder.default.embedding.weight", "prompt"),
)
CPU = torch.device("cpu")
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # the peers warn about one another


def directory() -> Path:
    """The weights of the GGUF file as a float32 directory, converted once by transformers."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    path = cache_directory() / "peers" / BASE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        gguf = pull(BASE)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )  # fmt: skip
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            model.save_pretrained(folder)
            Path(folder).rename(path)
            Path(folder).mkdir()  # for the temporary directory to remove
    return path


def peer(tuned: bool) -> Model:
    if tuned:
        keep_freed_memory()
    return transformers.AutoModelForCausalLM.from_pretrained(directory(), dtype=torch.float32)


def shared_name(name: str) -> str:
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return name


class Training:
    """The same training as minillm's: AdamW with the same learning rates and clipping."""

    def __init__(
        self, work: Work, batch: int, method: str, rate: float, epochs: int, precision: str, tuned: bool = False,
        device: str = "cpu",
    ):  # fmt: skip
        self.work, self.precision, self.tuned, self.device = work, precision, tuned, torch.device(device)
        self.labels = torch.tensor(work.labels, device=self.device)
        self.method, self.model = method, METHODS[method](peer(tuned)).to(self.device).train()
        self.trainable = {
            shared_name(name): parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        self.settings = TrainingSettings(epochs=epochs, learning_rate=rate, batch_size=batch)
        self.steps, self.step = epochs * -(-len(work.prompts) // batch), 0
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=rate, weight_decay=0.0)

    def logits(self, batch: list[int]) -> torch.Tensor:
        ids, last = pad_right([self.work.prompts[row] for row in batch])
        mask = (torch.arange(ids.shape[1]) <= last[:, None]).long().to(self.device)
        # Counted from the end, because a soft prompt adds positions at the start.
        last = last - ids.shape[1]
        positions, last = last.unique(return_inverse=True) if self.tuned else (0, last)
        with autocast(self.device, self.precision):
            found = self.model(input_ids=ids.to(self.device), attention_mask=mask, logits_to_keep=positions).logits
        return found[torch.arange(len(batch)), last]

    def shared(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The trained parameters, or their gradients, in minillm's shapes, as views."""
        if self.method != "prefix":
            return dict(tensors)
        config = self.model.config
        keys, values = rearrange(
            tensors["prompt"], "P (L sides G K) -> sides L G P K",
            sides=2, L=config.num_hidden_layers, G=config.num_key_value_heads,
        )  # fmt: skip
        return {"keys": keys, "values": values}

    def loss(self, batch: list[int]) -> torch.Tensor:
        return F.cross_entropy(self.logits(batch)[:, self.work.answers].float(), self.labels[batch])

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().cpu().numpy() for name, parameter in self.shared(self.trainable).items()}

    @torch.no_grad()
    def start_from(self, values: dict[str, np.ndarray]) -> None:
        for name, parameter in self.shared(self.trainable).items():
            parameter.copy_(torch.from_numpy(values[name]))

    def probe(self, batch: list[int]) -> dict:
        with torch.no_grad():
            logits = self.logits(batch).float().cpu().numpy()
        loss = self.loss(batch)
        loss.backward()
        found = self.shared({name: parameter.grad for name, parameter in self.trainable.items()})
        gradients = {name: gradient.cpu().numpy().copy() for name, gradient in found.items()}
        self.optimizer.zero_grad()
        return {"logits": logits, "losses": np.array([loss.item()]), "gradients": gradients}

    def train(self, batches: list[list[int]]) -> list[float]:
        losses = []
        for batch in batches:
            self.optimizer.param_groups[0]["lr"] = rate_at(self.step, self.steps, self.settings)
            loss = self.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.settings.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
            self.step += 1
        return losses


class Features:
    """A logistic regression on the last token's hidden state after the last norm."""

    def __init__(self, work: Work, precision: str, c: float, tuned: bool = False):
        self.work, self.precision, self.c = work, precision, c
        self.model = peer(tuned).eval()
        self.found = np.zeros((len(work.prompts), self.model.config.hidden_size), np.float32)

    @torch.inference_mode()
    def compute(self, batches: list[list[int]]) -> np.ndarray:
        for batch in batches:
            ids, mask = pad_left([self.work.prompts[row] for row in batch])
            with autocast(CPU, self.precision):
                hidden = self.model.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            self.found[batch] = hidden[:, -1].float().numpy()
        return self.found[[row for batch in batches for row in batch]]

    def fit(self, features: np.ndarray) -> np.ndarray:
        return LogisticRegression(C=self.c, max_iter=2000).fit(features, self.work.labels).coef_[0]


class Scoring:
    """The probabilities of the answers after each prompt, which is processed in full for every row."""

    def __init__(self, work: Work, precision: str, tuned: bool = False):
        self.work, self.precision = work, precision
        self.model = peer(tuned).eval()
        self.only_last = {"logits_to_keep": 1} if tuned else {}

    @torch.inference_mode()
    def score(self, batches: list[list[int]]) -> np.ndarray:
        found = []
        for batch in batches:
            ids, mask = pad_left([self.work.prompts[row] for row in batch])
            with autocast(CPU, self.precision):
                logits = self.model(input_ids=ids, attention_mask=mask.long(), **self.only_last).logits[:, -1]
            found.append(logits.float().softmax(-1)[:, self.work.answers])
        return torch.cat(found).numpy()
