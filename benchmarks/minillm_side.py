"""minillm's side of the benchmarks, with the training loop, scoring and feature cache of the ladder.

`keep_freed_memory` is on, as in minillm's commands. Each contestant runs in its own process; its arguments and results
are lists, dictionaries and numpy arrays.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.reviews import BASE, Work
from minillm import load
from minillm.adapt import FineTune, FrozenHead, LoRA, Method, PrefixTuning, SoftPrompt
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.data.batches import pad_right
from minillm.lab.experiment import Experiment
from minillm.prompting.prompt_cache import PromptCache
from minillm.prompting.scoring import Features as RowFeatures
from minillm.prompting.scoring import answer_scores
from minillm.runtime.device import autocast, keep_freed_memory
from minillm.training.activation_cache import ActivationCache, lowest_trained_stage
from minillm.training.feature_cache import compute_features
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop
from minillm.training.methods import on_lowered_base
from minillm.training.schedule import TrainingSettings

WORDS = "Classify the movie review as negative or positive."
POSITIONS = 10
METHODS: dict[str, Callable[[Experiment], Method]] = {
    "lora": lambda on: LoRA(on.decoder, r=8, alpha=16, targets=("query", "value")),
    "soft-prompt": lambda on: SoftPrompt(on.decoder, POSITIONS, on.tokenizer.encode(WORDS)),
    "prefix": lambda on: PrefixTuning(on.decoder, POSITIONS, "zero"),
    "last-blocks": lambda on: FineTune(on.decoder, layers=2),
    "full": lambda on: FineTune(on.decoder),
}
CPU = torch.device("cpu")


def experiment(precision: str) -> Experiment:
    keep_freed_memory()
    decoder, tokenizer = load(BASE)
    assert tokenizer is not None
    return Experiment(decoder, tokenizer, CPU, precision, seed=0)


def frozen_base(precision: str) -> Experiment:
    """The base, with its frozen matrices in the precision."""
    found = experiment(precision)
    found.decoder = on_lowered_base("features", found.decoder, precision, lambda decoder: decoder)
    return found


def built(name: str, precision: str, device: torch.device) -> Method:
    """The method on its own base, with the frozen matrices in the precision."""
    on = experiment(precision)
    decoder = on.decoder.to(device)
    return on_lowered_base(name, decoder, precision, lambda decoder: METHODS[name](replace(on, decoder=decoder)))


def cache(method: Method) -> RowFeatures | None:
    """An activation cache of the frozen layers below the trained ones, if there are any; nothing is cached yet."""
    return ActivationCache(method).features if lowest_trained_stage(method) else None


class Training:
    """A method trained on the answers' cross-entropy, with warm-up, cosine and clipping."""

    def __init__(
        self, work: Work, batch: int, method: str, rate: float, epochs: int, precision: str, device: str = "cpu"
    ):
        self.work, self.precision, self.device = work, precision, torch.device(device)
        self.labels = torch.tensor(work.labels, device=self.device)
        torch.manual_seed(0)
        self.method = built(method, precision, self.device).train()
        self.cached = cache(self.method)
        settings = TrainingSettings(epochs=epochs, learning_rate=rate, batch_size=batch, precision=precision)
        learner = TorchLearner(self.method.trainable(), self.loss, settings)
        self.loop = Loop(learner, range(len(work.prompts)), lambda row: len(work.prompts[row]), settings)

    def loss(self, batch: list[int]) -> tuple[torch.Tensor, int]:
        answers = [[answer] for answer in self.work.answers]
        scores = answer_scores(self.method, [self.work.prompts[row] for row in batch], answers, self.cached)
        return F.cross_entropy(scores, self.labels[batch], reduction="sum"), len(batch)

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().cpu().numpy() for name, parameter in self.method.trainable().items()}

    @torch.no_grad()
    def start_from(self, values: dict[str, np.ndarray]) -> None:
        for name, parameter in self.method.trainable().items():
            parameter.copy_(torch.from_numpy(values[name]))
        self.cached = cache(self.method)

    def probe(self, batch: list[int]) -> dict:
        """The logits after each prompt, the loss and its gradients: what is compared before anything is timed."""
        ids, last = pad_right([self.work.prompts[row] for row in batch])
        with torch.no_grad(), autocast(self.device, self.precision):
            decoder = self.method.decoder
            hidden = decoder.features(ids.to(self.device), prefix=self.method.prefix())
            logits = decoder.head(hidden[torch.arange(len(batch)), last])
        with autocast(self.device, self.precision):
            summed, count = self.loss(batch)
        (summed / count).backward()
        trainable = self.method.trainable()
        gradients = {name: parameter.grad.cpu().numpy().copy() for name, parameter in trainable.items()}
        self.method.zero_grad()
        return {
            "logits": logits.float().cpu().numpy(),
            "losses": np.array([summed.item() / count]),
            "gradients": gradients,
        }  # fmt: skip

    def train(self, batches: list[list[int]]) -> list[float]:
        return [self.loop.step([batch]) for batch in batches]


class Features:
    """A linear probe on cached features. `c` is scikit-learn's, for a single weight vector."""

    def __init__(self, work: Work, precision: str, c: float):
        self.work, self.labels, self.recipe = work, torch.tensor(work.labels), FeatureRecipe(precision=precision)
        # Two classes' weights are w/2 and -w/2 at the optimum, penalised by half of what w alone would be.
        self.head = FrozenHead(frozen_base(precision).decoder, classes=2, settings={"c": c / 2})
        self.found = torch.zeros(len(work.prompts), self.head.config.width)

    def compute(self, batches: list[list[int]]) -> np.ndarray:
        rows = [row for batch in batches for row in batch]
        texts = [self.work.prompts[row] for row in rows]
        self.found[rows] = compute_features(self.head.decoder, texts, self.recipe)
        return self.found[rows].numpy()

    def fit(self, features: np.ndarray) -> np.ndarray:
        self.head.fit(torch.from_numpy(features), self.labels)
        weight = self.head.classifier.weight.detach()
        return (weight[1] - weight[0]).numpy()


class Scoring:
    """The answers' probabilities after each prompt; what the prompts of a share have in common is processed once."""

    def __init__(self, work: Work, precision: str):
        self.work, self.precision = work, precision
        self.decoder = frozen_base(precision).decoder.eval()

    @torch.no_grad()
    def score(self, batches: list[list[int]]) -> np.ndarray:
        answers = [[answer] for answer in self.work.answers]
        rows = [row for batch in batches for row in batch]
        found = []
        with autocast(CPU, self.precision):
            cached = PromptCache(self.decoder).process([self.work.prompts[row] for row in rows])
            rests = iter(cached.rests)
            for batch in batches:
                found.append(answer_scores(cached.model, [next(rests) for _ in batch], answers).exp())
        return torch.cat(found).numpy()
