"""Scores of influence against slow references."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from expunge.errors import ConvergenceError, SettingError, StateError
from expunge.states import GradientLog
from expunge.states.influence import Influence, influence
from expunge.training import Run
from states.test_gradient_log import TASK, network, text, train

pytest.importorskip("dattri")
DATA = text()
QUERY, CANDIDATES = DATA[:3], DATA[3:8]


def flat(model: Any, examples: list[Any]) -> torch.Tensor:
    losses = TASK.losses(model, TASK.collate(examples))
    return torch.cat([each.flatten() for each in torch.autograd.grad(losses.mean(), list(model.parameters()))])


def scores(kind: Influence | str, model: Any, **settings: Any) -> torch.Tensor:
    run = Run(TASK, execution=tiny.QUIET)
    return influence(model, QUERY, CANDIDATES, run, kind=kind, batch_size=2, **settings)


def few(kind: Influence) -> dict[str, Any]:
    """Settings of a kind by which its scores are quick to have."""
    layers = {} if kind is Influence.ACTIVATION else {"layers": ("*.ln_f.*",)}
    return layers | ({"damping": 1.0} if kind is Influence.INVERSE_HVP else {})


def test_gradients_at_the_model() -> None:
    model = network().eval()
    query = torch.stack([flat(model, [each]) for each in QUERY]).mean(0)
    wanted = torch.stack([flat(model, [each]) @ query for each in CANDIDATES])
    assert torch.allclose(scores(Influence.GRADIENT, model).float(), wanted, atol=1e-5)


def test_gradients_from_a_log(tmp_path: Path) -> None:
    model = network()
    log, reference = train(GradientLog.create(tmp_path / "log", model, TASK, DATA), model, DATA, epochs=2)
    model.eval()
    query = torch.stack([flat(model, [each]) for each in QUERY]).mean(0)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(StateError, match="the gradient log belongs to another model"):
        scores(Influence.GRADIENT, network(), log=log)
    with pytest.raises(SettingError, match="log: of use for the kinds gradient, hvp, inverse-hvp alone"):
        scores(Influence.ACTIVATION, model, log=log)
    wanted = torch.stack(
        [
            sum(torch.cat([epoch[name].flatten() for name in names]) for epoch in reference[number]) @ query
            for number in range(3, 8)
        ]
    )
    assert torch.allclose(scores(Influence.GRADIENT, model, log=log).float(), wanted, atol=1e-5)


def test_activations() -> None:
    model = network().eval()
    features = TASK.features(model, TASK.collate([*QUERY, *CANDIDATES]))
    assert torch.allclose(scores(Influence.ACTIVATION, model).float(), features[3:] @ features[:3].mean(0), atol=1e-4)


@pytest.mark.parametrize("kind", [Influence.HVP, Influence.INVERSE_HVP])
def test_curvature_against_a_dense_hessian(kind: Influence) -> None:
    """On the parameters of one layer norm, where the Hessian can be written down."""
    model = network().eval()
    names = [name for name, _ in model.named_parameters() if ".ln_f." in name]
    parameters = {name: dict(model.named_parameters())[name] for name in names}

    def mean_loss(vector: torch.Tensor, examples: list[Any]) -> torch.Tensor:
        pieces = vector.split([each.numel() for each in parameters.values()])
        values = dict(zip(names, pieces, strict=True))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            batch = TASK.collate(examples)
            logits = torch.func.functional_call(
                model, values, (), {k: batch[k] for k in ("input_ids", "attention_mask")}
            )
        log_p = logits.logits[:, :-1].log_softmax(-1)
        targets = batch["labels"][:, 1:]
        token = log_p.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)
        return (-token.sum(1) / (targets != -100).sum(1)).mean()

    point = torch.cat([each.detach().flatten() for each in parameters.values()])
    hessian = torch.autograd.functional.hessian(lambda vector: mean_loss(vector, [*QUERY, *CANDIDATES]), point)
    gradient = torch.func.grad(mean_loss)
    query = gradient(point, QUERY)
    damped = hessian + 0.1 * torch.eye(len(point))
    turned = hessian @ query if kind is Influence.HVP else torch.linalg.solve(damped, query)
    wanted = torch.stack([gradient(point, [each]) @ turned for each in CANDIDATES])
    solving = {"damping": 0.1, "tolerance": 1e-3} if kind is Influence.INVERSE_HVP else {}
    found = scores(kind, model, layers=("*.ln_f.*",), **solving)
    assert torch.allclose(found.float(), wanted, rtol=2e-3, atol=1e-5)


def test_an_inverse_that_is_not_found_is_an_error() -> None:
    with pytest.raises(ConvergenceError, match=r"after 2 iterations .* is solved to .* where 0\.01 was"):
        scores(Influence.INVERSE_HVP, network().eval(), layers=("*.ln_f.*",), damping=1e-6, iterations=2)


def test_a_kind_can_be_given_by_its_name() -> None:
    model = network().eval()
    found = {kind: scores(kind, model, **few(kind)) for kind in Influence}
    for kind, wanted in found.items():
        named = scores(kind.value, model, **few(kind))
        assert torch.equal(named, wanted), kind
        assert not any(torch.equal(named, other) for each, other in found.items() if each is not kind), kind


def test_bad_settings_are_refused() -> None:
    for settings, message in (
        ({"kind": "tracin"}, "kind must be one of gradient, activation, hvp, inverse-hvp, not 'tracin'"),
        ({"kind": Influence.INVERSE_HVP, "damping": 0.0}, "damping must be above 0"),
        ({"kind": Influence.GRADIENT, "layers": ("none",)}, "layers: nothing is called 'none'"),
        ({"kind": Influence.ACTIVATION, "layers": ("none",)}, "layers: of use for the kinds gradient, hvp, inverse-"),
        ({"kind": Influence.GRADIENT, "damping": 0.2}, "damping: of use for the kind inverse-hvp alone"),
        ({"kind": Influence.HVP, "iterations": 5}, "iterations: of use for the kind inverse-hvp alone"),
        ({"kind": "gradient", "curvature_examples": 5}, "curvature_examples: of use for the kinds hvp, inverse-hvp"),
        ({"kind": Influence.HVP, "curvature_examples": 0}, "curvature_examples must be above 0, not 0"),
        ({"kind": Influence.GRADIENT, "epochs": "first"}, "epochs='first' chooses among those of a log"),
    ):
        with pytest.raises(SettingError, match=message):
            scores(model=network(), **settings)
