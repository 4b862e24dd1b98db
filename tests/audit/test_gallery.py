"""Evidence of what image-to-image models restore, from the audit to the page."""

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import restoring
import tiny
from expunge import AuditSettings, Evidence, FineTune, References, Relearning, Stage, unlearn
from expunge.audit.decision import holm
from expunge.audit.evidence import Aspect
from expunge.audit.feature_networks import FeatureNetwork
from expunge.audit.image_figures import PictureGrid
from expunge.audit.images import measure_images
from expunge.audit.settings import PictureSettings
from expunge.errors import DataError, MissingNeedError, SavedModelError, SettingError
from expunge.pictures import reconstruction_error
from expunge.problem import Problem
from expunge.report.page import render
from expunge.training import Run, over_batches
from expunge.unlearning import Unlearned

RELEARNING = Relearning(forget_examples=5, retain_examples=20, steps=(0, 2))
SETS = ("forget", "retain", "holdout", "holdout, forgotten kind")


class Means(nn.Module):
    """Four features of a picture: the means of its quarters."""

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


NETWORK = FeatureNetwork("means of quarters", Means())


def settings(**pictures: object) -> AuditSettings:
    chosen = PictureSettings(**pictures)  # pyright: ignore[reportArgumentType]
    return AuditSettings(RELEARNING, bits=(), neighbours=0, pictures=chosen)


@pytest.fixture(scope="module")
def problem() -> Problem:
    recipe = restoring.recipe(epochs=3)
    holdout = restoring.pictures(12, seed=1)
    return restoring.problem(recipe(restoring.pictures(), 0), holdout=holdout, recipe=recipe)


@pytest.fixture(scope="module")
def unlearned(problem: Problem) -> Unlearned:
    return unlearn(problem, FineTune(stages=(Stage(1e-3, steps=2),)), execution=tiny.QUIET)


@pytest.fixture(scope="module")
def references(problem: Problem) -> References:
    chosen = settings(grid="holdout", count=15)
    return References.prepare(problem, 3, settings=chosen, execution=tiny.QUIET, network=NETWORK)


@pytest.fixture(scope="module")
def evidence(references: References, unlearned: Unlearned) -> Evidence:
    return references.compare(unlearned)


def test_every_set_is_measured_and_the_forgotten_kind_of_the_holdout_apart(evidence: Evidence):
    assert tuple(found.on for found in evidence.restorations) == SETS
    assert [found.unlearned.pictures for found in evidence.restorations] == [15, 15, 15, 12]
    for found in evidence.restorations:
        assert found.unlearned.feature_network == "means of quarters"
        assert {"reconstruction_error", "structural_similarity", "frechet_distance"} <= set(found.beside)
        assert all(len(beside.oracles) == 3 for beside in found.beside.values())


def test_figures_are_those_of_the_restored_pictures(problem: Problem, unlearned: Unlearned):
    found = References.prepare(problem, 2, settings=settings(), execution=tiny.QUIET, network=NETWORK)
    forget = found.compare(unlearned).restorations[0]
    run, task = Run(problem.task, 0, tiny.QUIET), restoring.MAE
    images = torch.stack([problem.forget[place][0] for place in range(24)]) if problem.forget is not None else None
    restored = torch.cat(over_batches(run, unlearned.model, cast(tuple, problem.forget), task.reconstructions))
    hidden = torch.cat(over_batches(run, unlearned.model, cast(tuple, problem.forget), task.hidden))
    assert forget.unlearned == measure_images(restored, cast(Tensor, images), hidden, network=NETWORK)


def test_the_grid_holds_pictures_of_the_forgotten_kind_and_what_models_make_of_them(
    references: References, evidence: Evidence, unlearned: Unlearned
):
    grid = cast(PictureGrid, evidence.grid)
    columns = grid.tensors()
    assert list(columns) == ["input", "original", "unlearned", "oracle", "truth"]
    assert all(pictures.shape == (8, 1, 8, 8) for pictures in columns.values())
    holdout = restoring.pictures(12, seed=1).tensors[0][:12]
    nearest = (columns["truth"][:, None] - holdout[None]).flatten(2).abs().amax(2).amin(1)
    assert float(nearest.max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(columns["input"][..., 4:], torch.full((8, 1, 8, 4), 128 / 255))
    for name in ("original", "unlearned", "oracle"):
        assert torch.equal(columns[name][..., :4], columns["truth"][..., :4])
        assert not torch.equal(columns[name][..., 4:], columns["truth"][..., 4:])


def test_restorations_of_the_forget_set_are_judged(problem: Problem, unlearned: Unlearned, evidence: Evidence):
    run, task = Run(problem.task, 0, tiny.QUIET), restoring.MAE
    forget = cast(tuple, problem.forget)
    seen = [
        torch.cat(over_batches(run, unlearned.model, forget, measure))
        for measure in (task.reconstructions, task.hidden)
    ]
    truth = torch.cat(over_batches(run, unlearned.model, forget, lambda _, batch: batch["images"]))
    error = evidence.measure("restoration, -log error", "forget")
    wanted = -float(torch.as_tensor(reconstruction_error(seen[0], truth, seen[1])).log().mean())
    assert error.unlearned.value == pytest.approx(wanted, abs=1e-3)
    frechet = evidence.measure("restoration, -log Fréchet distance", "forget")
    shown = evidence.restorations[0]
    assert shown.unlearned.frechet_distance is not None
    assert frechet.unlearned.value == pytest.approx(-np.log(shown.unlearned.frechet_distance))
    assert frechet.oracles == pytest.approx([-np.log(each) for each in shown.beside["frechet_distance"].oracles])
    for measure in (error, frechet):
        assert measure.aspect is Aspect.FORGETTING
        assert (measure.margin, measure.limit) == (0.05, None), "it finds differences, and tests no equivalence"
        assert measure.detectable is not None
        assert measure.unlearned.interval.low < measure.unlearned.value < measure.unlearned.interval.high
    judged = [measure for measure in evidence.measures if measure.aspect.judged]
    corrected = holm([measure.p_value for measure in judged])
    assert [measure.corrected_p_value for measure in judged] == pytest.approx(corrected)


def test_places_of_the_holdout_are_kept_beside_its_pictures(evidence: Evidence):
    found = evidence.embeddings
    assert found is not None
    assert found.feature_network == "means of quarters"
    assert {
        name: {model: len(points) for model, points in models.items()} for name, models in found.places.items()
    } == {
        "holdout": {"original": 15, "unlearned": 15, "oracle": 15},
        "holdout, forgotten kind": {"original": 12, "unlearned": 12, "oracle": 12},
    }
    kept, gone = (torch.tensor(found.places[name]["original"]) for name in ("holdout", "holdout, forgotten kind"))
    assert bool(torch.isfinite(torch.cat([kept, gone])).all())
    assert len(torch.cat([kept, gone]).unique(dim=0)) > 20


@pytest.mark.parametrize(("grid", "training"), [(None, set()), ("holdout", set()), ("forget", {"forget"})])
def test_places_of_a_training_set_are_kept_on_demand_alone(
    problem: Problem, unlearned: Unlearned, grid: str | None, training: set[str]
):
    chosen = settings(grid=grid, count=15)
    models = [restoring.recipe(epochs=1)(restoring.pictures(), seed) for seed in (1, 2)]
    found = References.prepare(problem, models, settings=chosen, execution=tiny.QUIET, network=NETWORK)
    places = found.compare(unlearned).embeddings
    assert (places is None) == (grid is None)
    assert {"forget", "retain"} & set(places.places if places else ()) == training


def test_pictures_are_kept_only_where_asked_for(problem: Problem, unlearned: Unlearned):
    found = References.prepare(problem, 2, settings=settings(), execution=tiny.QUIET).compare(unlearned)
    assert found.grid is None
    assert found.embeddings is None
    judged = {measure.name for measure in found.measures}
    assert "restoration, -log error" in judged
    assert "restoration, -log Fréchet distance" not in judged
    assert found.restorations[0].unlearned.frechet_distance is None
    assert "What the models restore" not in render(unlearned.record, found)


def test_the_page_shows_figures_and_pictures(unlearned: Unlearned, evidence: Evidence):
    page = render(unlearned.record, evidence)
    assert "What is restored" in page
    assert "Where the restored pictures lie" in page
    assert "pictures.variant" in page
    assert "means of quarters" in page
    assert "<image" in page
    assert "none of which was trained on" in page


def test_restorations_survive_the_way_to_disk(evidence: Evidence, tmp_path: object):
    evidence.save(str(tmp_path))
    assert Evidence.load(str(tmp_path)) == evidence


@pytest.mark.parametrize("damage", ["AAAA", "not base64!", ""])
def test_damaged_pictures_are_refused(damage: str):
    grid = PictureGrid.of("holdout", {"truth": torch.rand(2, 1, 4, 4)})
    broken = grid.model_copy(update={"columns": {"truth": damage}})
    with pytest.raises(SavedModelError, match="audit the run again"):
        broken.tensors()


def test_a_grid_larger_than_its_shape_is_not_unpacked():
    huge = PictureGrid.of("holdout", {"truth": torch.zeros(64, 3, 64, 64)})
    with pytest.raises(SavedModelError, match="shape"):
        huge.model_copy(update={"shape": (1, 1, 2, 2)}).tensors()


def test_too_few_pictures_are_refused_before_anything_is_trained(problem: Problem):
    def never(*_: object) -> nn.Module:
        raise AssertionError("an oracle was trained")

    untrained = Problem(
        problem.model, problem.task, problem.forget, problem.retain, problem.holdout, classes=(0,), recipe=never
    )
    with pytest.raises(DataError, match="needs more than 64"):
        References.prepare(
            untrained, 3, settings=settings(), execution=tiny.QUIET, network=FeatureNetwork("pixels", nn.Flatten())
        )


def test_a_grid_of_the_holdout_needs_one(problem: Problem):
    bare = restoring.problem(problem.model)
    with pytest.raises(MissingNeedError, match="holdout"):
        References.prepare(bare, [nn.Linear(1, 1)] * 2, settings=settings(grid="holdout"), execution=tiny.QUIET)


@pytest.mark.parametrize("wrong", [{"grid": "test"}, {"count": 0}, {"variant": "exact"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]):
    with pytest.raises(SettingError):
        settings(**wrong)
