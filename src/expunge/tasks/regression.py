"""Models that predict numbers: ridge regression, or a network whose last layer is linear."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.data import INPUT_NAMES, LABEL_NAMES, Example, FieldKey, MapDataset, field_key
from expunge.errors import DataError, ModelError, NonFiniteDataError, SettingError
from expunge.settings import require_positive, require_whole
from expunge.tasks._inputs import as_tensor, call, require_finite_floats, seen_by, stack_inputs
from expunge.tasks.base import Task

RegressionBatch = dict[str, Tensor]
"""`inputs`: (batch, ...) floats; `targets`: (batch, outputs) floats."""

_HEAD_PENALTY = 1e-6


@dataclass(frozen=True)
class Regression(Task):
    """A model that maps an input to one number, or to several.

    Losses and distances are those of a normal distribution around the prediction, so that they are in nats.

    Args:
        tolerance: An error of this size is of no account, in the unit of the targets: quality is the share of
            predictions that are that near. It is also the standard deviation by which the difference between two
            models is measured.
        outputs_per_example: Numbers predicted for each example.
        inputs: Field of an example that holds the input. By default the first field of a tuple, or the usual names.
        targets: Field that holds the target. By default the second field, or `labels`, `target`, `y`, ...
        edges: Bounds in rising order that part the range of the (first) output into groups, for reports.
        head: Dotted path of the last layer. By default the last `Linear` with as many outputs.
    """

    tolerance: float
    outputs_per_example: int = 1
    inputs: FieldKey | None = None
    targets: FieldKey | None = None
    edges: tuple[float, ...] = ()
    head: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "tolerance")
        require_whole(self, "outputs_per_example")
        if list(self.edges) != sorted(set(self.edges)):
            raise SettingError(f"edges must be in rising order without repetition, not {self.edges}")

    def collate(self, examples: Sequence[Example]) -> RegressionBatch:
        """Stack inputs and targets; refuse values that are not finite numbers."""
        input_key, target_key = self._keys(examples[0])
        try:
            inputs = [as_tensor(example[input_key]) for example in examples]
            targets = [as_tensor(example[target_key]).reshape(-1) for example in examples]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"an example lacks an input {input_key!r} or a numeric target {target_key!r}") from error
        return self._checked(stack_inputs(inputs), stack_inputs(targets))

    def stack(self, columns: Example) -> RegressionBatch:
        """A batch from a tuple or mapping of tensors that already have a batch axis."""
        input_key, target_key = self._keys(columns)
        inputs = torch.as_tensor(columns[input_key])
        return self._checked(inputs, torch.as_tensor(columns[target_key]).reshape(len(inputs), -1))

    def labels_of(self, dataset: MapDataset) -> None:
        """None: examples have no classes."""
        return None

    def outputs(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        """Predictions: (batch, outputs), in float32 at least.

        Raises:
            ShapeError: The model cannot take inputs of this shape.
            ModelError: The model returns something other than `outputs_per_example` numbers an example.
        """
        count = len(batch["inputs"])
        predictions = call(model, batch["inputs"])
        if predictions.shape == (count,) and self.outputs_per_example == 1:
            return predictions[:, None]
        if predictions.shape != (count, self.outputs_per_example):
            raise ModelError(
                f"the model returns outputs of shape {tuple(predictions.shape)} for {count} inputs, where "
                f"({count}, {self.outputs_per_example}) was expected; set `outputs_per_example`"
            )
        return predictions

    def losses(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        """Half the squared error, added up over outputs: (batch,); nats of a unit normal, up to a constant."""
        return 0.5 * self._errors(model, batch).square().sum(1)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Kullback-Leibler divergence of normals of standard deviation `tolerance`, in nats: (batch,)."""
        return 0.5 * ((outputs.double() - reference.double()) / self.tolerance).square().sum(1)

    def signal(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        """Log-likelihood under a normal of standard deviation `tolerance`, up to a constant: (batch,)."""
        return -0.5 * (self._errors(model, batch) / self.tolerance).square().sum(1)

    def quality(self, model: nn.Module, batch: RegressionBatch) -> dict[str, Tensor]:
        """1 where every output lies within `tolerance` of its target, else 0."""
        near = self._errors(model, batch).abs() <= self.tolerance
        return {"within tolerance": near.all(1).double()}

    def groups(self, batch: RegressionBatch) -> list[str]:
        """The range between two edges that each example's (first) target lies in."""
        names = self._ranges()
        return [names[place] for place in self._places(batch["targets"]).tolist()]

    def answers(self, outputs: Tensor) -> dict[str, Tensor]:
        """1 for the range between two edges that the (first) output lies in, else 0."""
        places = self._places(outputs)
        return {name: (places == number).double() for number, name in enumerate(self._ranges())}

    def features(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        """What the head sees: (batch, features)."""
        return seen_by(self.head_of(model), model, batch["inputs"]).flatten(1)

    def refit_head(self, model: nn.Module, batches: Iterable[RegressionBatch]) -> None:
        """Replace the head by the least-squares fit, with a penalty of 1e-6 on standardised features."""
        model.eval()
        with torch.no_grad():
            pairs = [(self.features(model, batch).double(), batch["targets"].double()) for batch in batches]
            features, targets = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
            centre, scale = features.mean(0), features.std(0, correction=0) + 1e-8
            standard = (features - centre) / scale
            system = standard.T @ standard / len(standard) + _HEAD_PENALTY * torch.eye(len(centre)).to(standard)
            mean = targets.mean(0)
            weight = torch.linalg.solve(system, standard.T @ (targets - mean) / len(standard)).T / scale
            head = self.head_of(model)
            if cast("Tensor | None", head.bias) is None:
                head.register_parameter("bias", nn.Parameter(torch.zeros_like(head.weight[:, 0])))
            head.weight.copy_(weight)
            head.bias.copy_(mean - weight @ centre)

    def head_of(self, model: nn.Module) -> nn.Linear:
        """The last layer of a model: named by `head`, or the last Linear with `outputs_per_example` outputs."""
        if self.head is not None:
            found = dict(model.named_modules()).get(self.head)
            if not isinstance(found, nn.Linear):
                raise ModelError(f"the model has no Linear named {self.head!r}")
            return found
        for module in reversed(list(model.modules())):
            if isinstance(module, nn.Linear) and module.out_features == self.outputs_per_example:
                return module
        raise ModelError(
            f"no Linear with {self.outputs_per_example} outputs was found; name the last layer with `head`"
        )

    def _errors(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        predictions = self.outputs(model, batch)
        return predictions - batch["targets"].to(predictions.dtype)

    def _places(self, values: Tensor) -> Tensor:
        return torch.bucketize(
            values[:, 0].double(), torch.tensor(self.edges, dtype=torch.double, device=values.device)
        )

    def _ranges(self) -> list[str]:
        if not self.edges:
            return ["all"]
        between = [f"{low:g} to {high:g}" for low, high in zip(self.edges[:-1], self.edges[1:], strict=True)]
        return [f"up to {self.edges[0]:g}", *between, f"above {self.edges[-1]:g}"]

    def _keys(self, example: Example) -> tuple[Any, Any]:
        by_position = isinstance(example, tuple | list)
        input_key = self.inputs if isinstance(self.inputs, int) == by_position else None
        target_key = self.targets if isinstance(self.targets, int) == by_position else None
        return (
            input_key if input_key is not None else field_key(example, INPUT_NAMES, 0, "input"),
            target_key if target_key is not None else field_key(example, LABEL_NAMES, 1, "target"),
        )

    def _checked(self, inputs: Tensor, targets: Tensor) -> RegressionBatch:
        require_finite_floats(inputs)
        if targets.shape != (len(inputs), self.outputs_per_example):
            raise DataError(
                f"targets of shape {tuple(targets.shape)} do not give {len(inputs)} inputs "
                f"{self.outputs_per_example} numbers each; set it, or choose the field with `targets`"
            )
        numbers = targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())
        if not bool(torch.isfinite(numbers).all()):
            raise NonFiniteDataError("a target holds NaN or infinity; clean the dataset or drop the example")
        return {"inputs": inputs, "targets": numbers}
