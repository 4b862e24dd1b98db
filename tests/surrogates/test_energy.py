"""The sampler draws from the density that a classifier is, and says when it could not."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import tiny
from expunge import Classification
from expunge.errors import DivergedError, SettingError
from expunge.networks import GaussianNaiveBayes
from expunge.surrogates import Langevin, SamplerDiagnostics, sample_energy

TASK = Classification(2)
BOUNDS = (-12.0, 12.0)
SETTINGS = Langevin(steps=600)


def classifier() -> GaussianNaiveBayes:
    """Two normal classes, whose logits are joint log densities: logsumexp of them is the density of the inputs."""
    model = GaussianNaiveBayes(2, 2)
    with torch.no_grad():
        model.means.copy_(torch.tensor([[-1.0, 0.5], [1.0, -0.5]]))
        model.variances.copy_(torch.tensor([[0.5, 1.0], [1.0, 2.0]]))
        model.log_priors.copy_(torch.tensor([0.3, 0.7]).log())
    return model


@dataclass(frozen=True)
class Mixture:
    """Mean, variances and class shares of p(x) ∝ Σ_y exp(f_y(x)/T) for the classifier above."""

    shares: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, model: GaussianNaiveBayes, temperature: float) -> "Mixture":
        # A normal density to the power 1/T is a normal one of T times the variance, times |2πΣ|^((1 - 1/T)/2) T^(d/2).
        size = (2 * math.pi * model.variances.detach()).log().sum(1)
        weights = (model.log_priors.detach() / temperature + (1 - 1 / temperature) / 2 * size).softmax(0)
        mean = weights @ model.means.detach()
        within = temperature * weights @ model.variances.detach()
        return cls(weights, mean, within + weights @ (model.means.detach() - mean).square())


def deviations(inputs: Tensor, labels: Tensor, expected: Mixture) -> list[float]:
    """How many standard errors mean, variances and share of class 1 lie from what they should be."""
    rows = inputs.double()
    squares = (rows - expected.mean).square()
    found: list[float] = []
    for values, truth in ((rows, expected.mean), (squares, expected.variance), (labels[:, None], expected.shares[1:])):
        error = values.double().std(0) / math.sqrt(len(values))
        found += ((values.double().mean(0) - truth) / error).tolist()
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_moments_are_those_of_the_density(temperature: float) -> None:
    model = classifier()
    settings = Langevin(steps=2000, temperature=temperature)
    drawn, diagnostics = sample_energy(model, TASK, 1000, (2,), BOUNDS, settings=settings)
    found = deviations(*drawn.tensors, Mixture.of(model, temperature))
    assert max(map(abs, found)) < 4, found
    assert diagnostics.mixed
    assert 0.4 < diagnostics.acceptance < 0.75
    assert diagnostics.at_bounds < 0.01


class Negated(nn.Module):
    """A classifier whose logsumexp is the negative of another's: to climb it is to descend the other's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.model(inputs)
        return logits - 2 * logits.logsumexp(1, keepdim=True)


def test_a_wrong_sign_draws_what_the_model_never_saw() -> None:
    model = classifier()
    drawn, diagnostics = sample_energy(Negated(model), TASK, 300, (2,), BOUNDS, settings=SETTINGS)
    found = deviations(*drawn.tensors, Mixture.of(model, 1.0))
    assert max(map(abs, found)) > 10, "the test of the moments would have failed"
    assert diagnostics.at_bounds > 0.5


def test_a_linear_classifier_piles_up_at_the_bounds_and_that_is_told() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    nn.init.normal_(model.weight, std=3.0)
    _, diagnostics = sample_energy(model, TASK, 100, (3,), (-5.0, 5.0), settings=SETTINGS)
    assert diagnostics.at_bounds > 0.2


def test_the_seed_decides_every_bit_and_images_keep_their_shape() -> None:
    model = tiny.SHAPES["small_cnn"].build().eval()
    short = Langevin(steps=20)
    first, second, other = (
        sample_energy(model, tiny.TASK, 6, (3, 8, 8), (0.0, 1.0), settings=short, seed=seed) for seed in (3, 3, 4)
    )
    inputs, labels = first[0].tensors
    assert inputs.shape == (6, 3, 8, 8)
    assert bool(((inputs > 0) & (inputs < 1)).all())
    assert torch.equal(inputs, second[0].tensors[0])
    assert torch.equal(labels, second[0].tensors[1])
    assert first[1] == second[1]
    assert not torch.equal(inputs, other[0].tensors[0])
    assert SamplerDiagnostics.model_validate_json(first[1].model_dump_json()) == first[1]


def test_chains_that_do_not_move_are_told() -> None:
    _, diagnostics = sample_energy(classifier(), TASK, 50, (2,), BOUNDS, settings=Langevin(steps=20, step_size=1e-6))
    assert diagnostics.split_r_hat > 1.1
    assert not diagnostics.mixed


def test_senseless_requests_are_refused() -> None:
    with pytest.raises(SettingError, match=r"bounds must be .*not \(1.0, 0.0\)"):
        sample_energy(classifier(), TASK, 5, (2,), (1.0, 0.0))
    with pytest.raises(SettingError, match="examples must be at least 1, not 0"):
        sample_energy(classifier(), TASK, 0, (2,), BOUNDS)
    with pytest.raises(SettingError, match="steps must be a whole number of at least 20, not 3"):
        Langevin(steps=3)
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, 3e38)
    with pytest.raises(DivergedError, match="narrow the bounds"):
        sample_energy(broken, TASK, 5, (2,), BOUNDS, settings=SETTINGS)
