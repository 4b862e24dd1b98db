"""A recipe for models that are trained on our loop, so that retraining them can be resumed."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from expunge.data import MapDataset
from expunge.settings import require_positive, require_whole
from expunge.tasks import Batch, Task
from expunge.training.execution import Execution
from expunge.training.loop import Recording
from expunge.training.objective import Algorithm, Optimizer, Schedule, Term
from expunge.training.run import Run
from expunge.training.seeds import reproducible, seed_globals

DEFAULT_OPTIMIZER = Optimizer(1e-3, Algorithm.ADAM, schedule=Schedule.ONE_CYCLE)


@dataclass(frozen=True)
class Supervised:
    """Train a freshly built network on the task's own losses.

    Args:
        build: Makes an untrained network; it is called under the seed. Parameters that it leaves without a gradient
            (`requires_grad_(False)`) are not trained.
        task: What the network is for.
        epochs: Passes over the data.
        batch_size: Examples a step.
        optimizer: Adam at 1e-3 with a one-cycle schedule by default.
        augment: Changes each batch at random; it is called under the step's seed.
        execution: Device, precision, progress.
    """

    build: Callable[[], nn.Module]
    task: Task
    epochs: float = 10
    batch_size: int = 128
    optimizer: Optimizer = DEFAULT_OPTIMIZER
    augment: Callable[[Batch], Batch] | None = None
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "epochs")
        require_whole(self, "batch_size")

    def __call__(self, dataset: MapDataset, seed: int) -> nn.Module:
        """Train a model on `dataset` with everything random drawn from `seed`."""
        with reproducible(self.execution.threads):
            return self.fit(dataset, Run(self.task, seed, self.execution))

    def fit(self, dataset: MapDataset, run: Run, recording: Recording | None = None) -> nn.Module:
        """Train within a run that may have checkpoints; returns the model in evaluation mode."""
        seed_globals(run.seed, "build")
        model = self.untrained(run)
        self.go_on(model, dataset, run, recording=recording)
        return model.eval()

    def untrained(self, run: Run) -> nn.Module:
        """A network of `build` on the run's device; what was built frozen stays so."""
        built = self.build()
        model = run.copy(built)
        for name, parameter in built.named_parameters():
            model.get_parameter(name).requires_grad_(parameter.requires_grad)
        return model

    def go_on(
        self,
        model: nn.Module,
        dataset: MapDataset,
        run: Run,
        *,
        phase: str = "train",
        epochs: float | None = None,
        recording: Recording | None = None,
    ) -> None:
        """Train a model in place, wherever it stands, in a phase of its own.

        Args:
            model: What is trained.
            dataset: On what.
            run: Where the phase belongs to.
            phase: Its name, unique within the run.
            epochs: Passes over the data, if not those of the recipe.
            recording: Looks on, example by example; see `Run.train`.
        """
        term = Term(dataset, self.task.losses, batch_size=self.batch_size, augment=self.augment)
        run.train(
            phase, model, [term], self.optimizer, epochs=self.epochs if epochs is None else epochs, recording=recording
        )
