"""Classifiers of images, feature vectors, or anything else that one tensor can hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from expunge.data import INPUT_NAMES, LABEL_NAMES, Example, FieldKey, MapDataset, column, field_key
from expunge.errors import DataError, LabelError, ModelError, SettingError
from expunge.settings import require_whole
from expunge.tasks._inputs import as_tensor, call, require_finite_floats, seen_by, stack_inputs
from expunge.tasks.base import Task

ClassBatch = dict[str, Tensor]
"""`inputs`: (batch, ...) floats; `labels`: (batch,) int64."""


@dataclass(frozen=True)
class Classification(Task):
    """A model that maps an input to one of several classes.

    The model is called with the batch of inputs alone and returns logits, as a tensor or as the `logits` of a
    Hugging Face output. Inputs may be tensors, arrays, lists of numbers, or PIL images (which become
    channels-first floats in [0, 1]).

    Args:
        classes: Number of classes; labels run from 0 to `classes - 1`.
        inputs: Field of an example that holds the input. By default the first field of a tuple, or the usual
            names in a mapping (`pixel_values`, `image`, `img`, `x`, ...).
        labels: Field that holds the label. By default the second field, or `labels`, `label`, `target`, `y`, ...
        names: Names of the classes for reports; their numbers by default.
        head: Dotted path of the last layer. By default the last `Linear` or `Conv2d` with `classes` outputs.
    """

    classes: int
    inputs: FieldKey | None = None
    labels: FieldKey | None = None
    names: tuple[str, ...] | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        """Check the number of classes and of names."""
        require_whole(self, "classes", least=2)
        if self.names is not None and len(self.names) != self.classes:
            raise SettingError(f"{len(self.names)} names were given for {self.classes} classes")

    def collate(self, examples: Sequence[Example]) -> ClassBatch:
        """Stack inputs and labels; refuse values that are not finite and labels out of range."""
        first = examples[0]
        input_key, label_key = self._keys(first)
        try:
            inputs = [as_tensor(example[input_key]) for example in examples]
            labels = torch.tensor([_whole(example[label_key]) for example in examples])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"an example lacks an input {input_key!r} or a whole-number label {label_key!r}") from error
        return self._checked(stack_inputs(inputs), labels)

    def stack(self, columns: Example) -> ClassBatch:
        """A batch from a tuple or mapping of tensors that already have a batch axis."""
        input_key, label_key = self._keys(columns)
        return self._checked(torch.as_tensor(columns[input_key]), torch.as_tensor(columns[label_key]).reshape(-1))

    def outputs(self, model: nn.Module, batch: ClassBatch) -> Tensor:
        """Logits: (batch, classes), in float32 at least.

        Raises:
            ShapeError: The model cannot take inputs of this shape.
            ModelError: The model returns something other than one logit a class.
        """
        logits = call(model, batch["inputs"])
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            count = len(batch["inputs"])
            raise ModelError(
                f"the model returns outputs of shape {tuple(logits.shape)} for {count} inputs, where "
                f"({count}, {self.classes}) was expected; set `classes` to what the model was built with"
            )
        return logits

    def losses(self, model: nn.Module, batch: ClassBatch) -> Tensor:
        """Cross-entropy of each example in nats: (batch,)."""
        return F.cross_entropy(self.outputs(model, batch), batch["labels"], reduction="none")

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Jensen-Shannon divergence of the predicted distributions in nats, at most log 2: (batch,)."""
        log_p, log_q = outputs.double().log_softmax(1), reference.double().log_softmax(1)
        log_mean = torch.logaddexp(log_p, log_q) - np.log(2)
        terms = log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)
        return 0.5 * terms.where(log_p != log_q, 0.0).sum(1).clamp(min=0)

    def signal(self, model: nn.Module, batch: ClassBatch) -> Tensor:
        """Logit-scaled confidence log(p_y / (1 - p_y)): (batch,). Source: Carlini et al. 2022, section VI-A."""
        logits, labels = self.outputs(model, batch), batch["labels"][:, None]
        others = logits.scatter(1, labels, -torch.inf)
        return logits.gather(1, labels)[:, 0] - others.logsumexp(1)

    def quality(self, model: nn.Module, batch: ClassBatch) -> dict[str, Tensor]:
        """Accuracy: 1 where the largest logit is the label's, else 0."""
        return {"accuracy": (self.outputs(model, batch).argmax(1) == batch["labels"]).double()}

    def groups(self, batch: ClassBatch) -> list[str]:
        """The name of each example's class."""
        return [self.class_name(label) for label in batch["labels"].tolist()]

    def answers(self, outputs: Tensor) -> dict[str, Tensor]:
        """Predicted probability of each class."""
        return {self.class_name(index): column for index, column in enumerate(outputs.double().softmax(1).T)}

    def features(self, model: nn.Module, batch: ClassBatch) -> Tensor:
        """What the head sees; feature maps before a 1x1 convolution are averaged over positions."""
        features = seen_by(self.head_of(model), model, batch["inputs"])
        return features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)

    def refit_head(self, model: nn.Module, batches: Iterable[ClassBatch]) -> None:
        """Replace the head by an L2-regularised logistic regression (C = 1) on standardised features.

        Classes absent from the batches get a bias so low that they are never predicted.
        """
        model.eval()
        with torch.no_grad():
            pairs = [(self.features(model, batch).double().cpu(), batch["labels"].cpu()) for batch in batches]
        features, labels = torch.cat([pair[0] for pair in pairs]).numpy(), torch.cat([pair[1] for pair in pairs])
        if len(labels.unique()) < 2:
            raise DataError("refitting the head needs examples of two classes at least; add examples of other classes")
        centre, scale = features.mean(0), features.std(0) + 1e-8
        fitted = LogisticRegression(max_iter=2000).fit((features - centre) / scale, labels.numpy())
        rows, biases = cast(NDArray[np.float64], fitted.coef_), cast(NDArray[np.float64], fitted.intercept_)
        if len(fitted.classes_) == 2:
            rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
        weight = np.zeros((self.classes, features.shape[1]))
        bias = np.full(self.classes, biases.min() - 1e4)
        weight[fitted.classes_] = rows / scale
        bias[fitted.classes_] = biases - (rows / scale) @ centre
        self._set_head(model, torch.from_numpy(weight), torch.from_numpy(bias))

    def head_of(self, model: nn.Module) -> nn.Linear | nn.Conv2d:
        """The last layer of a model: named by `head`, or the last Linear or Conv2d with `classes` outputs."""
        if self.head is not None:
            found = dict(model.named_modules()).get(self.head)
            if not isinstance(found, nn.Linear | nn.Conv2d):
                raise ModelError(f"the model has no Linear or Conv2d named {self.head!r}")
            return found
        for module in reversed(list(model.modules())):
            if isinstance(module, nn.Linear) and module.out_features == self.classes:
                return module
            if isinstance(module, nn.Conv2d) and module.out_channels == self.classes:
                return module
        raise ModelError(f"no Linear or Conv2d with {self.classes} outputs was found; name the last layer with `head`")

    def class_name(self, index: int) -> str:
        """Name of a class for people to read."""
        return self.names[index] if self.names is not None else str(index)

    def labels_of(self, dataset: MapDataset) -> Tensor:
        """Label of every example of a dataset: (examples,). Inputs are not read where the data are columnar.

        Raises:
            DataError: The labels are not whole numbers.
            LabelError: One is outside the classes.
        """
        if len(dataset) == 0:
            return torch.empty(0, dtype=torch.long)
        key = self.labels if self.labels is not None else field_key(dataset[0], LABEL_NAMES, 1, "label")
        values = column(dataset, key)
        try:
            whole = values.astype(np.int64)
        except (TypeError, ValueError) as error:
            raise DataError(f"the labels in field {key!r} are not numbers; map the classes to 0, 1, ...") from error
        if not np.array_equal(whole, values):
            raise DataError(f"the labels in field {key!r} are not whole numbers; map the classes to 0, 1, ...")
        labels = torch.from_numpy(whole).reshape(-1)
        self._check_range(labels)
        return labels

    def fields(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Inputs and labels in the positions where this task looks for them in a tuple."""
        places = {
            self.inputs if isinstance(self.inputs, int) else 0: inputs,
            self.labels if isinstance(self.labels, int) else 1: labels,
        }
        return tuple(places.get(place, labels) for place in range(max(places) + 1))

    def _keys(self, example: Example) -> tuple[Any, Any]:
        by_position = isinstance(example, tuple | list)
        input_key = self.inputs if isinstance(self.inputs, int) == by_position else None
        label_key = self.labels if isinstance(self.labels, int) == by_position else None
        return (
            input_key if input_key is not None else field_key(example, INPUT_NAMES, 0, "input"),
            label_key if label_key is not None else field_key(example, LABEL_NAMES, 1, "label"),
        )

    def _checked(self, inputs: Tensor, labels: Tensor) -> ClassBatch:
        require_finite_floats(inputs)
        if len(labels) != len(inputs) or bool((labels != labels.long()).any()):
            raise DataError(
                f"labels of type {labels.dtype} and shape {tuple(labels.shape)} do not give {len(inputs)} inputs one "
                "whole number each; map the classes to 0, 1, ..."
            )
        self._check_range(labels)
        return {"inputs": inputs, "labels": labels.long()}

    def _check_range(self, labels: Tensor) -> None:
        outside = (labels < 0) | (labels >= self.classes)
        if bool(outside.any()):
            raise LabelError(
                f"a label is {int(labels[outside][0])}, outside the {self.classes} classes of the task "
                f"(0 to {self.classes - 1}); correct the label or `classes`"
            )

    def _set_head(self, model: nn.Module, weight: Tensor, bias: Tensor) -> None:
        head = self.head_of(model)
        with torch.no_grad():
            head.weight.copy_(weight.reshape(head.weight.shape))
            if head.bias is None:
                head.register_parameter("bias", nn.Parameter(torch.zeros_like(head.weight[:, 0].flatten())))
            cast(Tensor, head.bias).copy_(bias)


def _whole(value: Any) -> int:
    number = int(value)
    if number != value:
        raise ValueError("a label is not a whole number")
    return number
