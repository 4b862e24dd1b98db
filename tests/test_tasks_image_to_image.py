"""The task of image-to-image models: batches, masks, measures, and the attack with a fresh decoder."""

import copy
import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import restoring
import tiny
from expunge.data import subset
from expunge.errors import CorruptionError, DataError, LabelError, NonFiniteDataError, SettingError, ShapeError
from expunge.image_models import MaskedAutoencoder
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import VISIBLE, positions_of
from expunge.training import Run, over_batches

TASK = restoring.MAE
by_family = pytest.mark.parametrize("kind", restoring.FAMILIES.values(), ids=restoring.FAMILIES)


@dataclasses.dataclass(frozen=True)
class Whatever:
    """Hides what it is told to."""

    columns: Sequence[int] = ()
    wrong: bool = False

    def mask(self, shape: tuple[int, int, int, int], seed: int, positions: Tensor) -> Tensor:
        del seed, positions
        found = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
        found[..., list(self.columns)] = True
        return found[:, :, 1:] if self.wrong else found


@dataclasses.dataclass(frozen=True)
class Drawn(MaskedAutoencoder):
    """Draws a given picture, whatever it is shown."""

    picture: float = 0.0
    truth: bool = False

    def reconstruct(self, model: nn.Module, images: Tensor, hidden: Tensor, draw: object) -> Tensor:
        return images if self.truth else torch.full_like(images, self.picture)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return restoring.vit_mae().eval()


def batch_of(images: Tensor) -> dict[str, Tensor]:
    return TASK.stack((images,))


def test_examples_come_in_many_forms() -> None:
    values = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8).repeat(4, 4)
    picture = Image.fromarray(values.numpy())
    wanted = values.float()[None, None] / 255
    for example in ((picture, 2), {"image": picture, "label": 2}, (wanted[0], 2), {"image": wanted[0].numpy(), "y": 2}):
        batch = TASK.collate([example])
        assert torch.allclose(batch["images"], wanted)
        assert batch["labels"].tolist() == [2]
    for bare in ((picture,), {"image": picture}):
        assert set(TASK.collate([bare])) == {"images", "positions"}
    named = dataclasses.replace(TASK, image="front", label="who")
    batch = named.collate([{"front": picture, "back": "no", "who": 3}])
    assert batch["labels"].tolist() == [3]
    stacked = TASK.stack((wanted, torch.tensor([2])))
    assert torch.equal(stacked["positions"], TASK.collate([(wanted[0], 2)])["positions"])


def test_what_is_no_image_is_refused() -> None:
    flat = torch.rand(8, 8)
    for example, error, words in [
        ((flat,), ShapeError, "has 2 axes"),
        ((255 * torch.rand(1, 8, 8),), DataError, r"pixels run from .*must lie in \[0, 1\]"),
        ((torch.rand(1, 8, 8) - 0.5,), DataError, "pixels run from -0"),
        ((torch.full((1, 8, 8), math.nan),), NonFiniteDataError, "NaN"),
        (((255 * flat).to(torch.uint8)[None],), DataError, "uint8"),
        ((torch.rand(1, 8, 8), 0.5), LabelError, "whole numbers"),
        (({"label": 1}), DataError, "no image found"),
    ]:
        with pytest.raises(error, match=words):
            TASK.collate([example])
    with pytest.raises(ShapeError, match="different shapes"):
        TASK.collate([(torch.rand(1, 8, 8),), (torch.rand(1, 6, 6),)])


def test_labels_name_groups() -> None:
    data = TensorDataset(torch.rand(3, 1, 8, 8), torch.tensor([1, 0, 1]))
    assert TASK.labels_of(data).tolist() == [1, 0, 1]
    assert TASK.labels_of(TensorDataset(torch.rand(3, 1, 8, 8))) is None
    batch = TASK.stack(data[:])
    assert TASK.groups(batch) == ["1", "0", "1"]
    people = dataclasses.replace(TASK, names=("ann", "bob"))
    assert people.groups(batch) == ["bob", "ann", "bob"]
    assert people.groups(people.stack(data[:][:1])) == ["all"] * 3
    with pytest.raises(LabelError, match=r"run from 0 to 2, .* below the 2 names"):
        people.labels_of(TensorDataset(torch.rand(2, 1, 8, 8), torch.tensor([0, 2])))
    with pytest.raises(LabelError, match="not numbers"):
        TASK.labels_of([(torch.rand(1, 8, 8), "ann")])


def test_equal_images_have_equal_positions_and_others_have_not() -> None:
    images = torch.rand(50, 1, 8, 8)
    positions = positions_of(images)
    assert len(positions.unique()) == 50
    assert bool((positions >= 0).all())
    assert torch.equal(positions_of(images.flip(0)), positions.flip(0))
    nearly = images.clone()
    nearly[:, 0, 0, 0] += 1e-3
    assert not bool((positions_of(nearly) == positions).any())


def test_outputs_are_the_hidden_part_alone(model: nn.Module) -> None:
    batch = batch_of(torch.rand(3, 1, 8, 8))
    with torch.no_grad():
        outputs, whole = TASK.outputs(model, batch), TASK.reconstructions(model, batch)
    assert bool((outputs[..., :4] == VISIBLE).all())
    assert torch.equal(outputs[..., 4:], whole[..., 4:])
    assert torch.equal(whole[..., :4], batch["images"][..., :4])


def test_quality_is_the_share_that_one_colour_leaves_unexplained(model: nn.Module) -> None:
    images = torch.rand(5, 1, 8, 8)
    batch = batch_of(images)

    def share(**drawn: float) -> Tensor:
        task = dataclasses.replace(TASK, family=Drawn(**drawn))
        return task.quality(model, batch)["explained share"]

    assert torch.allclose(share(truth=True), torch.ones(5, dtype=torch.double))
    colour = images[..., :4].mean((1, 2, 3))
    error = (images[..., 4:] - 0.5).square().mean((1, 2, 3))
    flat = (images[..., 4:] - colour[:, None, None, None]).square().mean((1, 2, 3))
    assert torch.allclose(share(picture=0.5), (1 - error / flat).clamp(0, 1).double(), atol=1e-6)
    assert torch.equal(share(picture=0.0), torch.zeros(5, dtype=torch.double))
    plain = dataclasses.replace(TASK, family=Drawn(picture=0.5))
    assert float(plain.quality(model, batch_of(torch.full((1, 1, 8, 8), 0.5)))["explained share"]) == 1
    assert torch.allclose(plain.signal(model, batch), -(error.double() + 1e-6).log(), atol=1e-5)


def test_divergence_is_that_of_coins() -> None:
    def drawn(*values: float) -> Tensor:
        return torch.tensor(values).reshape(1, 1, 1, -1)

    p, q = 0.2, 0.7
    mean = (p + q) / 2
    by_hand = 0.5 * sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in ((p, mean), (q, mean)))
    found = TASK.divergence(drawn(VISIBLE, p, p), drawn(VISIBLE, q, p))
    assert float(found) == pytest.approx(by_hand / 2)
    assert float(TASK.divergence(drawn(0, 1), drawn(1, 0))) == pytest.approx(math.log(2))
    assert float(TASK.divergence(drawn(0, 1, 0.3), drawn(0, 1, 0.3))) == 0
    assert float(TASK.divergence(drawn(0.5), drawn(0.51))) == pytest.approx(0.01**2 / (8 * 0.25), rel=1e-2)


def test_a_mask_must_hide_a_part(model: nn.Module) -> None:
    batch = batch_of(torch.rand(2, 1, 8, 8))
    for columns, word in (((), "nothing"), (range(8), "all"), ((0, 4), "all")):
        task = dataclasses.replace(TASK, corruption=Whatever(tuple(columns)))
        with pytest.raises(CorruptionError, match=f"hides {word} of an image of 8 by 8 pixels"):
            task.losses(model, batch)
    with pytest.raises(CorruptionError, match="gave a mask"):
        dataclasses.replace(TASK, corruption=Whatever((0,), wrong=True)).outputs(model, batch)


def test_masks_are_cut_to_what_the_model_can_hide(model: nn.Module) -> None:
    task = dataclasses.replace(TASK, corruption=Whatever((5,)))
    hidden = task.hidden(model, batch_of(torch.rand(2, 1, 8, 8)))
    assert bool(hidden[..., 4:].all())
    assert not bool(hidden[..., :4].any())


@by_family
def test_training_draws_anew_and_evaluation_does_not(kind: restoring.Kind) -> None:
    torch.manual_seed(0)
    model, batch = kind.build(), kind.task.stack(restoring.pictures(8).tensors)
    assert not torch.equal(kind.task.losses(model.train(), batch), kind.task.losses(model, batch))
    assert torch.equal(kind.task.losses(model.eval(), batch), kind.task.losses(model, batch))
    other = dataclasses.replace(kind.task, seed=1)
    if kind.task is restoring.DIFFUSION:
        assert not torch.equal(other.losses(model, batch), kind.task.losses(model, batch))


def test_training_may_hide_what_is_asked_for(model: nn.Module) -> None:
    task = dataclasses.replace(TASK, training=restoring.Half())
    batch = batch_of(torch.rand(4, 1, 8, 8))
    with torch.no_grad():
        measured = task.losses(model, batch)
        trained = task.losses(copy.deepcopy(model).train(), batch)
    assert torch.allclose(measured, trained, atol=1e-6)


def test_senseless_settings_are_refused() -> None:
    for name in ("decoder_steps", "decoder_batch_size", "decoder_learning_rate"):
        with pytest.raises(SettingError, match=name):
            ImageToImage(MaskedAutoencoder(), restoring.Half(), **{name: 0})


@by_family
def test_a_fresh_decoder_learns_on_a_frozen_encoder(kind: restoring.Kind) -> None:
    torch.manual_seed(0)
    model, data = kind.build().eval(), restoring.pictures(10)
    task = dataclasses.replace(kind.task, decoder_steps=60, decoder_learning_rate=3e-3)
    batches = [task.stack(data.tensors)]
    parts = task.family.parts(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start, again = float(task.losses(model, batches[0]).detach().mean()), copy.deepcopy(model)
    state = torch.random.get_rng_state()
    task.refit_head(model, batches)
    assert torch.equal(torch.random.get_rng_state(), state)
    after = model.state_dict()
    fixed = [*parts.encoder, *(name for name in before if "position_embeddings" in name or "tokenizer" in name)]
    assert all(torch.equal(before[name], after[name]) for name in fixed)
    moved = [name for name in after if name.startswith(tuple(task.family.family_decoder(model)))]
    assert sum(not torch.equal(before[name], after[name]) for name in moved) > 0.8 * len(moved)
    assert float(task.losses(model, batches[0]).detach().mean()) < 0.8 * start
    assert not model.training
    assert all(parameter.requires_grad for parameter in again.parameters()) == all(
        parameter.requires_grad for parameter in model.parameters()
    )
    task.refit_head(again, batches)
    assert all(torch.equal(again.state_dict()[name], after[name]) for name in after)


def test_a_fresh_decoder_leaves_the_statistics_of_the_encoder_as_they_are() -> None:
    torch.manual_seed(0)
    model = restoring.vit_mae().eval()
    model.vit.layernorm = nn.Sequential(model.vit.layernorm, OverFeatures(24))
    model.decoder.decoder_norm = nn.Sequential(model.decoder.decoder_norm, OverFeatures(16), nn.Dropout(0.1))
    batch = TASK.stack(restoring.pictures(10).tensors)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    TASK.refit_head(model, [batch])
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in moved if name.startswith("vit.")}
    assert "decoder.decoder_norm.1.running_mean" in moved, "the decoder is in training mode"
    assert not any(module.training for module in model.modules())


class OverFeatures(nn.BatchNorm1d):
    """BatchNorm of (batch, tokens, features)."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.transpose(1, 2)).transpose(1, 2)


@by_family
def test_features_tell_kinds_apart(kind: restoring.Kind) -> None:
    torch.manual_seed(0)
    model, data = kind.build(), restoring.pictures(10)
    run = Run(kind.task, execution=tiny.QUIET)
    features = torch.cat(over_batches(run, model, data, kind.task.features, batch_size=7))
    assert features.ndim == 2
    assert len(features) == len(data)
    part = torch.cat(over_batches(run, model, subset(data, torch.tensor([4, 17])), kind.task.features))
    assert torch.allclose(part, features[[4, 17]], atol=1e-5)
    centres = features.reshape(3, 10, -1).mean(1)
    spread = (features.reshape(3, 10, -1) - centres[:, None]).norm(dim=2).mean()
    assert float(torch.pdist(centres).min()) > float(spread)


def test_there_are_no_kinds_of_answer() -> None:
    assert TASK.answers(torch.rand(2, 1, 8, 8)) == {}
