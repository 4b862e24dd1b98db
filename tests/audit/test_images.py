"""Measures of sets of pictures against hand formulas, closed forms and torchmetrics."""

import math
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from expunge.audit.feature_networks import FeatureNetwork, classifier_network, clip_network
from expunge.audit.images import (
    ImageMeasures,
    against_oracles,
    embedding_similarity,
    frechet_closeness,
    frechet_distance,
    inception_score,
    measure_images,
)
from expunge.corruptions import CentreCrop
from expunge.errors import DataError, MissingNeedError, ModelError, SettingError, ShapeError, SourceError
from expunge.networks import small_cnn
from expunge.tasks import Classification

VARIANTS: Any = ["plain", "shrunk", "projected"]


def normal(count: int, features: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(values: Tensor) -> Tensor:
    """Mean 0 and covariance 1, exactly."""
    centred = values - values.mean(0)
    root = torch.linalg.cholesky(centred.T @ centred / (len(values) - 1))
    return torch.linalg.solve_triangular(root, centred.T, upper=False).T


def test_frechet_distance_in_closed_form() -> None:
    one, other = whitened(normal(50)), whitened(normal(70, seed=1))
    scale, shift = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.3, 0.0, -1.0]).double()
    expected = float((shift**2).sum() + ((1 - scale) ** 2).sum())  # commuting covariances
    assert frechet_distance(one, other * scale + shift) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(other * scale + shift, one) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_does_not_depend_on_the_axes_and_does_on_their_angle() -> None:
    scale = torch.tensor([1.0, 3.0, 0.2]).double()
    one, other = whitened(normal(50)) * scale, whitened(normal(50, seed=1)) * scale
    turned = torch.linalg.qr(normal(3, seed=2)).Q
    assert frechet_distance(one @ turned, other @ turned) == pytest.approx(frechet_distance(one, other), abs=1e-9)
    covariances = [np.diag(scale.numpy() ** 2), (turned.T @ torch.diag(scale**2) @ turned).numpy()]
    mixed = np.linalg.eigvals(covariances[0] @ covariances[1])  # (Σ Τ) is similar to a positive matrix
    expected = 2 * np.trace(covariances[0]) - 2 * np.sqrt(np.maximum(mixed.real, 0)).sum()
    assert frechet_distance(one, other @ turned) == pytest.approx(float(expected), abs=1e-8)


def test_frechet_distance_like_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    one, other = normal(40, 6), 0.7 * normal(60, 6, 1) @ normal(6, 6, 2) + 0.2

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.mean(0), torch.cov(values.T)

    expected = fid._compute_fid(*moments(one), *moments(other))
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-6)


def test_too_few_pictures_are_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match="of 20 features needs more than 20 pictures of each set, and there are 20: "):
        frechet_distance(normal(90, 20), normal(20, 20))
    assert frechet_distance(normal(90, 20), normal(21, 20)) > 0
    for variant in VARIANTS[1:]:
        assert frechet_distance(normal(12, 20), normal(12, 20, 1), variant) > 0
        with pytest.raises(DataError, match="9 pictures tell nothing of a distribution; give 10 at least"):
            frechet_distance(normal(9, 20), normal(50, 20), variant)
    with pytest.raises(SettingError, match="variant must be one of plain, shrunk, projected, not 'kernel'"):
        frechet_distance(normal(9), normal(9), cast(Any, "kernel"))
    with pytest.raises(ShapeError, match="there are 3 and 4 features"):
        frechet_distance(normal(20), normal(20, 4))


def test_variants_approach_the_plain_distance_as_pictures_become_more() -> None:
    other = torch.tensor([2.0, 1.0, 0.5]).double()
    plain, shrunk, projected = (
        frechet_distance(normal(4000), normal(4000, seed=1) * other + 1, variant) for variant in VARIANTS
    )
    assert shrunk == pytest.approx(plain, rel=0.02)
    assert projected == pytest.approx(plain, rel=1e-9)  # all three directions are kept


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_with_few_pictures_variants_still_rank_models(variant: Any) -> None:
    """Over 20 draws of 30 pictures with 64 features, the model further from the truth has the larger distance."""
    spread = torch.linspace(2, 0.1, 64).double()

    def distances(seed: int) -> list[float]:
        truth = normal(30, 64, 3 * seed) * spread
        models = [normal(30, 64, 3 * seed + 1) * spread * size for size in (1.0, 0.5)]
        return [frechet_distance(model, truth, variant) for model in models]

    pairs = [distances(seed) for seed in range(20)]
    assert sum(near < far for near, far in pairs) >= 18


def test_projection_sees_only_the_directions_of_the_reference() -> None:
    reference = torch.cat([normal(10, 2) * 5, torch.zeros(10, 3).double()], 1)
    features = torch.cat([reference[:, :2], normal(10, 3, 4)], 1)
    assert frechet_distance(features, reference, "projected") == pytest.approx(0, abs=1e-9)


def test_inception_score_by_hand() -> None:
    sure = torch.eye(4).repeat(5, 1) * 1e3
    assert inception_score(sure).value == pytest.approx(4)
    assert inception_score(torch.zeros(20, 4)).value == pytest.approx(1)
    assert inception_score(sure[:1].repeat(20, 1)).value == pytest.approx(1)  # all of one class
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    mean = p.mean(0)
    expected = math.exp(float((p * (p / mean).log()).sum(1).mean()))
    assert inception_score(p.log()).value == pytest.approx(expected)


def test_inception_score_in_parts() -> None:
    logits = normal(200, 5)
    score = inception_score(logits, 10, seed=3)
    assert score == inception_score(logits, 10, seed=3)
    assert score != inception_score(logits, 10, seed=4)
    assert 0 < score.deviation < score.value
    assert score.value == pytest.approx(inception_score(logits).value, rel=0.2)
    assert math.isnan(inception_score(logits).deviation)
    with pytest.raises(DataError, match="5 classes in 50 parts needs 250 pictures, and there are 200"):
        inception_score(logits, 50)
    with pytest.raises(SettingError, match="parts must be a whole number"):
        inception_score(logits, 0)


def test_inception_score_like_torchmetrics() -> None:
    score = pytest.importorskip("torchmetrics.image.inception")
    logits = normal(60, 5).float()

    class Given(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a large buffer, and of the deviation of one part
        metric = score.InceptionScore(feature=Given(), splits=1)
        metric.update(torch.zeros(60, 3, 4, 4, dtype=torch.uint8))
        expected = float(metric.compute()[0])
    assert inception_score(logits).value == pytest.approx(expected, rel=1e-5)


def test_embedding_similarity_by_hand() -> None:
    ours, theirs = (
        torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
        torch.tensor([[2.0, 0.0], [-3.0, 0.0], [1.0, 0.0]]),
    )
    assert embedding_similarity(ours, theirs).tolist() == pytest.approx([1, -math.sqrt(0.5), 0])
    with pytest.raises(ShapeError, match="do not belong together"):
        embedding_similarity(ours, theirs[:2])


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    torch.manual_seed(0)
    return classifier_network(small_cnn(3, 4, 2), Classification(4), "small CNN, untrained")


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_classifier_is_a_feature_network(network: FeatureNetwork) -> None:
    model = small_cnn(3, 4, 2).train()
    named, task = classifier_network(model, Classification(4), "mine"), Classification(4)
    model.eval()
    with torch.no_grad():
        features = task.features(model, {"inputs": pictures(5)})
        logits = model(pictures(5))
    model.train()
    torch.testing.assert_close(named.embed(pictures(5), 2), features.double())
    torch.testing.assert_close(named.classify(pictures(5), 2), logits.double())
    assert model.training


def test_all_measures_of_a_set(network: FeatureNetwork) -> None:
    truth, noise = pictures(40), pictures(40, 1)
    mask = CentreCrop(0.5).mask((40, 3, 8, 8), 0, torch.arange(40))
    restored = torch.where(mask, noise, truth)
    features = network.embed(truth).shape[1]
    assert features < 40
    found = measure_images(restored, truth, mask, network=network)
    assert (found.pictures, found.feature_network, found.frechet_variant) == (40, "small CNN, untrained", "plain")
    assert found.reconstruction_error == pytest.approx(float((noise - truth).square()[:, :, 2:6, 2:6].mean()), rel=1e-5)
    assert found.frechet_distance == pytest.approx(frechet_distance(network.embed(restored), network.embed(truth)))
    assert found.inception_classes == 4
    assert found.inception_score is not None
    assert 1 <= found.inception_score <= 4
    same = measure_images(truth, truth, mask, network=network)
    assert same.frechet_distance == pytest.approx(0, abs=1e-9)
    assert same.embedding_similarity == pytest.approx(1)
    assert (same.reconstruction_error, same.peak_signal_to_noise) == (0, 100)
    assert same.structural_similarity == pytest.approx(1)
    plain = measure_images(restored, truth, mask)
    assert (plain.feature_network, plain.frechet_distance, plain.inception_score) == (None, None, None)
    assert ImageMeasures.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(DataError, match="needs more than"):
        measure_images(restored[:5], truth[:5], mask[:5], network=network)


def test_measures_are_set_beside_oracles(network: FeatureNetwork) -> None:
    truth = pictures(40)
    restored = [(truth + 0.1 * pictures(40, seed)).clamp(0, 1) for seed in range(1, 5)]
    first, *oracles = [measure_images(each, truth, network=network) for each in restored]
    found = against_oracles(first, oracles)
    assert set(found) == {
        "reconstruction_error", "peak_signal_to_noise", "structural_similarity", "embedding_similarity",
        "frechet_distance", "inception_score",
    }  # fmt: skip
    error = found["reconstruction_error"]
    mean = np.mean([oracle.reconstruction_error for oracle in oracles])
    assert error.share == pytest.approx((first.reconstruction_error - mean) / mean)
    assert error.inside is True
    ruined = measure_images(pictures(40, 9), truth, network=network)
    assert against_oracles(ruined, oracles)["reconstruction_error"].inside is False
    assert against_oracles(first, oracles[:1])["frechet_distance"].inside is None
    with pytest.raises(MissingNeedError, match="no fixed number stands for having forgotten"):
        against_oracles(first, [])
    with pytest.raises(SettingError, match=r"frechet_variant differs .* \(plain, shrunk\)"):
        against_oracles(measure_images(restored[0], truth, network=network, variant="shrunk"), oracles)
    with pytest.raises(SettingError, match=r"pictures differs .* \(30, 40\)"):
        against_oracles(measure_images(restored[0][:30], truth[:30], network=network), oracles)


def clip_folder(folder: Path) -> Path:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    configuration = CLIPConfig(
        text_config=sizes | {"vocab_size": 20, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    torch.manual_seed(0)
    CLIPModel(configuration).save_pretrained(folder)
    return folder


def test_a_clip_model_from_a_folder(tmp_path: Path) -> None:
    network = clip_network(clip_folder(tmp_path / "tiny-clip"))
    assert network.name == "CLIP tiny-clip"
    found = network.embed(pictures(3))
    assert found.shape == (3, 6)
    model = cast(Any, CLIPModel).from_pretrained(tmp_path / "tiny-clip").eval()
    sized = pictures(3, 5).repeat_interleave(2, 2).repeat_interleave(2, 3)  # already of the model's size
    scaled = (sized - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(scaled).pooler_output)
    torch.testing.assert_close(network.embed(sized), expected.double())
    grey = pictures(2)[:, :1]
    torch.testing.assert_close(network.embed(grey), network.embed(grey.repeat(1, 3, 1, 1)))
    assert measure_images(pictures(3), pictures(3, 1), network=None).feature_network is None
    with pytest.raises(ModelError, match="CLIP tiny-clip has no classes; use a classifier"):
        network.classify(pictures(2))
    with pytest.raises(ShapeError, match="1 or 3 channels, not 2"):
        network.embed(pictures(2)[:, :2])
    with pytest.raises(SourceError, match="no CLIP model can be loaded"):
        clip_network(tmp_path / "nowhere")


def test_networks_of_a_wrong_form_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the features of pixels have shape \(2, 3, 8, 8\) for 2 pictures"):
        FeatureNetwork("pixels", nn.Identity()).embed(pictures(2))
    broken = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    nn.init.constant_(cast(nn.Linear, broken[1]).weight, math.inf)
    with pytest.raises(ModelError, match="hold NaN or infinity"):
        FeatureNetwork("broken", broken).embed(pictures(2))


def test_the_interval_of_a_frechet_distance_is_as_wide_as_it_varies():
    values: list[float] = []
    widths: list[float] = []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        reference = torch.randn(300, 3, generator=draw)
        found = frechet_closeness(reference + 0.5 + 0.5 * torch.randn(300, 3, generator=draw), reference, "plain")
        assert found is not None
        interval = found.interval()
        values.append(found.value)
        widths.append(interval.high - interval.low)
        assert found.value == pytest.approx((interval.high + interval.low) / 2)
    # 95 % of a t distribution of 9 degrees of freedom lie within 2.262 standard errors
    assert np.mean(widths) / (2 * 2.262) == pytest.approx(np.std(values, ddof=1), rel=0.35)


@pytest.mark.parametrize(
    ("count", "variant", "there"), [(11, "plain", False), (12, "plain", True), (11, "shrunk", False)]
)
def test_a_frechet_distance_is_judged_where_a_tenth_can_be_left_out(count: int, variant: str, there: bool):
    draw = torch.Generator().manual_seed(0)
    features, reference = torch.randn(2, count, 3, generator=draw)
    found = frechet_closeness(features, reference, cast(Any, variant))
    assert (found is not None) == there
    if found is not None:
        assert found.value == pytest.approx(-math.log(frechet_distance(features, reference, cast(Any, variant))))
