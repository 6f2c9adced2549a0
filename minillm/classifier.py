"""`TextClassifier`: text classification with every method, in scikit-learn's interface.

A text is formatted as a prompt, each label has an answer, and the scores are log P(answer | prompt). Where one answer
begins another (" not", " not sure"), their ends are scored too, in training and prediction (`data/answers.py`). The
method `features` instead fits a logistic regression to the features of the prompts. `minillm ladder` and `minillm
adapt` use this class. scikit-learn is not imported, but `clone`, `cross_val_score`, `GridSearchCV` and `Pipeline` work.
"""

import json
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minillm import hub
from minillm.adapt import Adaptation, FrozenHead, Method
from minillm.adapt.description import DESCRIPTION, Usage, describe
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.adapters.load import load
from minillm.data.labels import checked_texts, distinct, from_json, label_array
from minillm.data.tasks import LabelledText, Task
from minillm.data.templates import Question, Shot, Template, task_template
from minillm.decoder import Decoder
from minillm.errors import InputError, check_seed, unknown
from minillm.operations import softmax
from minillm.prompting.choosing import balanced_shots
from minillm.prompting.fitting import fit_head, fit_to_labels, score_labels
from minillm.prompting.lengths import Room, check_truncate, fit, fit_examples, room
from minillm.prompting.prompt_cache import PromptCache
from minillm.prompting.scoring import accuracy, head_scores
from minillm.runtime.device import best_precision, pick_device
from minillm.runtime.files import commit, complete
from minillm.runtime.reading import file_fingerprint, read_sealed, reading, sealed
from minillm.shapes import Float
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import Checkpoints
from minillm.training.feature_cache import cached_features, compute_features
from minillm.training.methods import METHODS, Base, MethodOptions, build, on_lowered_base, training_settings
from minillm.training.schedule import TrainingSettings

CLASSIFIER, FORMAT = "classifier.json", 2
IN_CONTEXT = ("zero-shot", "few-shot")
Prompts = Mapping[LabelledText, list[int]]
NAMES = (*IN_CONTEXT, "features", *METHODS)


class Scored(NamedTuple):
    """The score of each answer for each prompt, the number of tokens, the length of the common prefix, and the seconds
    that an earlier computation of stored features took."""

    scores: Float[Tensor, "N C"]
    tokens: int
    shared_tokens: int = 0
    earlier: float = 0.0


@dataclass
class Training:
    """Seconds (without loading the base) and tokens of `fit`; the chosen settings, with losses and validation."""

    seconds: float = 0.0
    tokens: int = 0
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class TextClassifier(MethodOptions):
    """A text classifier that adapts a decoder. Labels may be of any hashable type.

    `base` is a name, a path or a (Decoder, Tokenizer) pair; its weights are never modified. After `fit`, `classes_` are
    the labels in the order of the columns of `predict_proba`, and `method_` is the adapted decoder. Each method uses
    `base`, `prompt`, `answers`, `seed`, `device` and `quantise`. The others are used by:

        shots, end                              few-shot
        store                                   features, zero-shot
        length, init_text                       soft-prompt, prefix
        layers                                  last-blocks
        r, alpha, dropout, targets              lora, dora, pissa
        those of `TrainingOptions`              all but zero-shot, few-shot and features
        precision                               all but zero-shot and few-shot
    """

    base: str | Path | tuple[Decoder, Tokenizer | None] = "smollm2-135m-instruct"
    """A pulled model, tiny, a directory in Hugging Face's layout, a .gguf file, or a decoder and its tokenizer."""
    method: str = "lora"
    """zero-shot, few-shot, features, soft-prompt, prefix, output, last-blocks, lora, dora, pissa or full."""
    prompt: str = "Text: {text}\nLabel:"
    """The prompt template, with {text} as the placeholder; its wording affects the accuracy."""
    answers: Mapping[Any, str] | None = None
    """The answer for each label; by default a space and the label."""
    end: str = ""
    """The text after each answer in a few-shot prompt, and the end of answers that begin alike (default eos)."""
    shots: int = 8
    """The number of examples in a few-shot prompt."""
    seed: int = 0
    """The random seed."""
    device: str = "auto"
    """auto, cpu, cuda or mps; a pair is not moved."""
    quantise: int | None = None
    """Keep the matrices of the base in 4 or 8 bits; those of a pair are not changed."""
    precision: str = "auto"
    """The precision of matrix products in training: bfloat16, float32, or auto (bfloat16 if it is fast here)."""
    store: str | Path | None = None
    """The directory in which `features` are cached."""
    truncate: str = "error"
    """What happens to a text that is too long: error, or its left or right end is cut so that the prompt fits."""

    _estimator_type = "classifier"  # scikit-learn before 1.6

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name."""
        return {parameter.name: getattr(self, parameter.name) for parameter in fields(self)}

    def set_params(self, **params: Any) -> "TextClassifier":
        """Set parameters for the next `fit`. Raises InputError for an unknown name."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise unknown("parameter", name, known)
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> "TextClassifier":
        """An unfitted classifier with the same base; a pair is not copied."""
        return type(self)(**self.get_params())

    def __sklearn_tags__(self) -> Any:
        """Called by scikit-learn only, which is then imported."""
        sklearn = sys.modules["sklearn.utils"]
        return sklearn.Tags(
            estimator_type="classifier",
            target_tags=sklearn.TargetTags(required=True),
            classifier_tags=sklearn.ClassifierTags(),
            input_tags=sklearn.InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def fit(
        self, texts: Iterable[str], labels: Iterable[Hashable], *,
        validation: tuple[Iterable[str], Iterable[Hashable]] | None = None,
        on_trained: Callable[["TextClassifier"], None] = lambda classifier: None,
        checkpoints: Checkpoints | None = None,
    ) -> "TextClassifier":  # fmt: skip
        """Adapt the base to texts and labels. All texts are encoded, and their lengths checked, before anything trains.

        The best epoch, and C for `features`, are selected on the `validation` texts and labels; without them the last
        epoch is used, and C is selected on a fifth of the rows. `on_trained` is called with the classifier after the
        training, and when Ctrl-C interrupts it. With `checkpoints`, a training that was ended continues bit for bit, if
        its texts, labels and parameters are the same. Raises InputError for invalid parameters, texts or labels.
        """
        check_seed(self.seed)
        if self.method not in NAMES:
            raise unknown("method", self.method, NAMES)
        check_truncate(self.truncate)
        vars(self).pop("method_", None)
        labels = list(labels)
        self.classes_ = label_array(distinct(labels) if self.answers is None else list(self.answers))
        rows, held = self._rows(texts, labels), [] if validation is None else self._rows(*validation, "validation ")
        task = Task("the given data", self.prompt, tuple(self._answers()), rows, held, rows, end=self.end)
        return self.fit_task(task, on_trained, checkpoints)

    def fit_task(
        self, task: Task, on_trained: Callable[["TextClassifier"], None] = lambda classifier: None,
        checkpoints: Checkpoints | None = None,
    ) -> "TextClassifier":  # fmt: skip
        """`fit` to a task, whose labels are indices of the answers. The lengths of its test rows are checked too."""
        prompts, settings = self._prepare(task)
        if self.method == "features":
            self._fit_features(task, prompts)
        elif settings is not None:
            self._fit_by_gradient(task, prompts, settings, checkpoints, on_interrupt=lambda: on_trained(self))
        on_trained(self)
        return self

    def check_task(self, task: Task) -> dict[str, int]:
        """The trainable parameters and the optimizer steps of `fit_task`.

        Raises InputError where it would before its training, such as for a text that is too long.
        """
        settings = self._prepare(task)[1]
        trained = self.method_.trainable().values() if isinstance(self.method_, Method) else []
        del self.method_
        steps = 0 if settings is None else settings.epochs * settings.epoch_steps(len(task.train) + settings.replay)
        return {"trainable_parameters": sum(parameter.numel() for parameter in trained), "steps": steps}

    def _prepare(self, task: Task) -> tuple[Prompts, TrainingSettings | None]:
        """Load the base and build the untrained method; the prompts of all rows, and the settings of its training."""
        vars(self).pop("method_", None)
        if self.answers is not None:
            self.classes_ = label_array(list(self.answers))
        shots = balanced_shots(task, self.shots, self.seed) if self.method == "few-shot" else []
        decoder, self.tokenizer_ = self._load_base()
        self._check_vocabulary([*task.train, *task.test])
        self.template_, self.training_ = task_template(task, shots), Training(chosen={"shots": len(shots)})
        self.precision_ = self._precision(decoder)
        # Check the settings before the method is built.
        settings = training_settings(self.method, self, self.precision_, self.seed) if self.method in METHODS else None
        method = self._adapted(decoder)
        self.template_ = fit_examples(self.tokenizer_, self.template_, self._room(method), self.truncate)
        rows = list(dict.fromkeys([*task.train, *task.validation, *task.test]))
        prompts = dict(zip(rows, self._prompts(rows, method), strict=True))
        # In bfloat16 the float32 base is freed on return.
        self.method_ = method
        return prompts, settings

    def scores(self, texts: Iterable[str], name: str = "texts") -> Scored:
        """The score of each label for each text. Raises InputError before `fit`."""
        rows = [LabelledText(text, 0, place=f"texts[{n}]") for n, text in enumerate(checked_texts(texts))]
        return self.score_rows(rows, f"{self.method}, {name}")

    def score_rows(self, rows: Sequence[LabelledText], name: str = "", cache: PromptCache | None = None) -> Scored:
        """`scores` of rows; a cache keeps the common prefix of the prompts between calls. No name: no progress bar."""
        if not hasattr(self, "method_"):
            raise InputError("this TextClassifier is not fitted: call fit first")
        prompts = self._prompts(rows, self.method_)
        tokens = sum(map(len, prompts))
        if isinstance(self.method_, FrozenHead):
            features, earlier = self._features(prompts, name)
            return Scored(self.method_.classifier.scores(features), tokens, earlier=earlier)
        answers = self._answer_ids()
        if self.method == "zero-shot" and self.store is not None and max(map(len, answers)) == 1:
            # What the head reads at the end of the prompts are the features of the method features.
            features, earlier = self._features(prompts, name)
            return Scored(head_scores(self.method_.decoder.head, features, answers), tokens, earlier=earlier)
        if isinstance(self.method_, Method):
            return Scored(score_labels(self.method_, prompts, answers, self.precision_, name), tokens)
        # The common prefix of the prompts is processed once.
        cached = (cache or PromptCache(self.method_.decoder)).process(prompts)
        return Scored(cached.score(answers, name), cached.tokens, cached.shared)

    def check_rows(self, rows: Iterable[LabelledText]) -> int:
        """The number of rows. Raises InputError for a text that is too long; only long ones are encoded."""
        # A token has at least one byte.
        most, count, long = self._room(self.method_).prompt - len(self.template_.encode(self.tokenizer_, "")), 0, []
        for count, row in enumerate(rows, 1):  # noqa: B007
            long += [row] if self.truncate == "error" and len(row.text.encode()) > most else []
        self._prompts(long, self.method_)
        return count

    def predict_proba(self, texts: Iterable[str]) -> Float[np.ndarray, "N C"]:
        """The probability of each label for each text; the columns are in the order of `classes_`.

        Of the events that the prompt continues with one of the answers: P(answer | prompt), divided by the sum of all.
        """
        return softmax(self.scores(texts).scores.double()).numpy()

    def predict(self, texts: Iterable[str]) -> np.ndarray:
        """The most probable label of each text."""
        best = self.scores(texts).scores.argmax(-1)
        return self.classes_[best.numpy()]

    def score(self, texts: Iterable[str], labels: Iterable[Hashable]) -> float:
        """The accuracy, from 0 to 1."""
        texts = checked_texts(texts)
        scores = self.scores(texts).scores
        return accuracy(scores, _labels(self._rows(texts, labels)))

    def save(self, directory: str | Path, *, command: str | None = None) -> None:
        """Write classifier.json and, for a trained method, the adapter (`method_.save`), with the command that made it.

        Raises InputError before `fit`, and for labels that are not JSON types or tuples of them.
        """
        if not hasattr(self, "method_"):
            raise InputError("this TextClassifier is not fitted: call fit first")
        classes = self.classes_.tolist()
        try:
            held = [from_json(label) for label in json.loads(json.dumps(classes))] == classes
        except (TypeError, ValueError):
            held = False
        if not held:
            raise InputError(f"JSON cannot hold the labels {classes}; strings, numbers and tuples can be saved"[:500])
        params = {name: value.item() if isinstance(value, np.generic) else value for name, value in self._params()}
        described = {
            "format": FORMAT, "classes": classes, "precision": self.precision_, "parameters": params, "adapter": None,
            "examples": [[shot.text, shot.answer] for shot in self.template_.shots], "scores_end": True,
        }  # fmt: skip
        with commit(directory) as new:
            if isinstance(self.method_, Adaptation):
                self.method_.usage = Usage(
                    base_name=params["base"] or self.method_.usage.base_name, prompt=self.prompt,
                    labels=self._answers(), end=self.end, command=command or self.method_.usage.command,
                )  # fmt: skip
                self.method_.save(directory, tokenizer=self.tokenizer_)
                described["adapter"] = file_fingerprint(new(DESCRIPTION))
            new.text(CLASSIFIER, sealed(described))

    def _params(self) -> Iterable[tuple[str, Any]]:
        """The parameters in JSON's types: a base in memory is None, the answers are in the order of the classes."""
        answers = None if self.answers is None else self._answers()
        base = None if isinstance(self.base, tuple) else str(self.base)
        store = None if self.store is None else str(self.store)
        return (self.get_params() | {"answers": answers, "base": base, "store": store}).items()

    @classmethod
    def load(
        cls, directory: str | Path, *, base: str | Path | tuple[Decoder, Tokenizer | None] | None = None,
        device: str | None = None,
    ) -> "TextClassifier":  # fmt: skip
        """Load a saved classifier: its probabilities equal those before saving, bit for bit.

        `base` and `device` replace its own. Raises InputError for a directory that is damaged, edited or no classifier,
        if the adapter belongs to another base, and if one answer begins another in a file from before their ends were
        scored.
        """
        path = Path(directory) / CLASSIFIER
        complete(path.parent)
        if not path.exists():
            command = f"minillm {'chat' if describe(directory).chat else 'generate'} --adapter {directory}"
            raise InputError(f"{directory} is no classifier: it has no file {CLASSIFIER}; use it with `{command}`")
        given = {name: value for name, value in (("base", base), ("device", device)) if value is not None}
        with reading(path, "a classifier"):
            return cls._restored(path, read_sealed(path, FORMAT), given)

    @classmethod
    def _restored(cls, path: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> "TextClassifier":
        params, classes = {**found["parameters"], **given}, [from_json(label) for label in found["classes"]]
        answers = params["answers"]
        answers = None if answers is None else dict(zip(classes, answers, strict=True))
        if params["base"] is None:
            raise InputError(f"{path} was saved with a decoder in memory; pass base=(decoder, tokenizer)")
        self = cls(**params | {"targets": tuple(params["targets"]), "answers": answers})
        self.classes_, self.precision_, self.training_ = label_array(classes), found["precision"], Training()
        texts = [self.prompt, self.end, self.method, self.device, self.precision_, self.truncate, *self._answers()]
        texts += [text for shot in found["examples"] for text in shot]
        if len(classes) < 2 or not all(isinstance(text, str) for text in texts):
            raise InputError("the options, examples and answers must be texts, those of two classes or more")
        self.template_ = Template(self.prompt, end=self.end, shots=tuple(Shot(*shot) for shot in found["examples"]))
        decoder, self.tokenizer_ = self._load_base()

        def adapted(decoder: Decoder) -> Adaptation:
            if file_fingerprint(path.with_name(DESCRIPTION)) != found["adapter"]:
                raise InputError(f"the adapter in the directory of {path} is not the one that was saved with it")
            return load(decoder, path.parent, allow_noop=True, tokenizer=self.tokenizer_)

        in_context = self.method in IN_CONTEXT
        self.method_ = decoder if in_context else on_lowered_base(self.method, decoder, self.precision_, adapted)
        alike = self._scores_answers(self.method_) and self._answer_ids() != self._plain_ids()
        if alike and "scores_end" not in found:
            raise InputError(
                f"{path} was saved by a minillm that did not score the end of answers, and one of its answers begins "
                f"another ({', '.join(self._answers())}): fit it again"[:500]
            )
        return self

    def _load_base(self) -> tuple[Decoder, Tokenizer]:
        """Raises InputError if the base has no tokenizer."""
        if isinstance(self.base, tuple):
            decoder, tokenizer = self.base
        else:
            decoder, tokenizer = hub.load(self.base, quantise=self.quantise)
            decoder = decoder.to(pick_device(self.device))
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, which texts need")
        return decoder, tokenizer

    def _precision(self, decoder: Decoder) -> str:
        if self.method in IN_CONTEXT:
            return "float32"
        return best_precision(decoder.embed.weight.device) if self.precision == "auto" else self.precision

    def _rows(self, texts: Iterable[str], labels: Iterable[Any], part: str = "") -> list[LabelledText]:
        """Texts with the indices of their classes. Raises InputError for different lengths and unknown labels."""
        texts, labels = checked_texts(texts), list(labels)
        places = {label: place for place, label in enumerate(self.classes_.tolist())}
        if len(texts) != len(labels):
            raise InputError(f"got {len(texts)} texts and {len(labels)} labels; each text needs one label")
        if missing := [label for label in labels if label not in places]:
            raise InputError(f"there is no class {missing[0]!r}; there are: {', '.join(map(str, places))}"[:500])
        rows = enumerate(zip(texts, labels, strict=True))
        return [LabelledText(text, places[label], place=f"{part}texts[{n}]") for n, (text, label) in rows]

    def _check_vocabulary(self, rows: Sequence[LabelledText]) -> None:
        """Raises InputError if more than half of the tokens of the texts are unknown to the tokenizer."""
        if self.tokenizer_.unk is None:
            return
        ids = [token for row in rows for token in self.tokenizer_.encode(row.text)]
        if ids.count(self.tokenizer_.unk) > len(ids) / 2:
            raise InputError(
                f"the base's tokenizer knows less than half of the words, as in {rows[0].text[:60]!r}; "
                "choose another base"
            )

    def _answers(self) -> list[str]:
        if self.answers is not None:
            return list(self.answers.values())
        return [f" {label}" for label in self.classes_.tolist()]

    def _answer_ids(self) -> list[list[int]]:
        """The answers' ids, which exclude one another, for training and for scoring."""
        return self.template_.answers(self.tokenizer_, (), self._answers())

    def _plain_ids(self) -> list[list[int]]:
        return [self.tokenizer_.encode(answer) for answer in self._answers()]

    def _scores_answers(self, method: Adaptation | Decoder) -> bool:
        """False for a linear probe and for a classifier in the head's place."""
        return self.method != "features" and getattr(method, "classes", None) is None

    def _room(self, method: Adaptation | Decoder) -> Room:
        """The room for a prompt before the longest answer, whose last token is not an input."""
        answer = max(map(len, self._answer_ids())) - 1 if self._scores_answers(method) else 0
        return room(method if isinstance(method, Method) else method.decoder, answer, self.precision_)

    def _prompts(self, rows: Sequence[LabelledText], method: Adaptation | Decoder) -> list[list[int]]:
        """The ids of the prompts. Texts that are too long are cut or refused, as `truncate` says."""
        questions = [Question(self.template_, row.text) for row in rows]
        places = [row.place or "a text" for row in rows]
        return fit(self.tokenizer_, questions, [self._room(method)] * len(rows), self.truncate, places)[1]

    def _adapted(self, decoder: Decoder) -> Method | Decoder:
        """The untrained method, or the decoder if the method trains nothing in it."""
        if self.method == "features":
            return on_lowered_base(self.method, decoder, self.precision_, lambda decoder: decoder)
        self._answer_ids()  # raises InputError for answers that cannot be told apart
        if self.method in IN_CONTEXT:
            return decoder
        return build(Base(decoder, self.tokenizer_, self._plain_ids()), self.method, self, self.precision_, self.seed)

    def _fit_by_gradient(
        self, task: Task, prompts: Prompts, settings: TrainingSettings, checkpoints: Checkpoints | None,
        on_interrupt: Callable[[], None],
    ) -> None:  # fmt: skip
        assert isinstance(self.method_, Method)
        held = ([prompts[row] for row in task.validation], _labels(task.validation)) if task.validation else None
        history = fit_to_labels(
            self.method_, self.tokenizer_, [prompts[row] for row in task.train], _labels(task.train),
            self._answer_ids(), held, settings, on_interrupt, self.method, checkpoints,
        )  # fmt: skip
        chosen = {
            "epochs": settings.epochs, "rate": settings.learning_rate, "best_epoch": history.best_epoch + 1,
            "validation": history.validation, "losses": history.losses,
            "validation_losses": history.validation_losses, "forgetting": history.forgetting,
        }  # fmt: skip
        self.training_ = Training(history.seconds, history.tokens, chosen)

    def _fit_features(self, task: Task, prompts: Prompts) -> None:
        decoder, train, start = self.method_.decoder, [prompts[row] for row in task.train], time.perf_counter()
        features, earlier = self._features(train, "features, training rows")
        seconds, held = time.perf_counter() - start + earlier, None
        if task.validation:
            rows = [prompts[row] for row in task.validation]
            held = self._features(rows, "features, validation rows")[0], _labels(task.validation)
        start = time.perf_counter()
        method, c = fit_head(decoder, len(self.classes_), features, _labels(task.train), held)
        seconds += time.perf_counter() - start
        chosen = {"c": c}
        if held is not None:
            chosen["validation"] = accuracy(method.classifier.scores(held[0]), held[1])
        self.method_, self.training_ = method, Training(seconds, sum(map(len, train)), chosen)

    def _features(self, prompts: list[list[int]], name: str) -> tuple[Float[Tensor, "N D"], float]:
        """As `cached_features`."""
        decoder, recipe = self.method_.decoder, FeatureRecipe(precision=self.precision_)
        if self.store is None:
            return compute_features(decoder, prompts, recipe, name), 0.0
        return cached_features(decoder, prompts, Path(self.store), recipe, self.tokenizer_.fingerprint, name)


def _labels(rows: Sequence[LabelledText]) -> Tensor:
    return torch.tensor([row.label for row in rows])
