"""Families of image models: what each hides, what it may see, and where its decoder begins."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

import restoring
from expunge.errors import CorruptionError, EncoderError, ModelError, SettingError, ShapeError
from expunge.image_models import (
    Draw,
    InpaintingDiffusion,
    MaskedAutoencoder,
    MaskedTokens,
    fill_codebook,
)

by_family = pytest.mark.parametrize("kind", restoring.FAMILIES.values(), ids=restoring.FAMILIES)


def some(count: int = 4) -> Tensor:
    return restoring.pictures(per_kind=4).tensors[0][:count]


def right_half(images: Tensor) -> Tensor:
    return restoring.Half().mask(tuple(images.shape), 0, torch.arange(len(images)))


def built(kind: restoring.Kind) -> nn.Module:
    torch.manual_seed(0)
    return kind.build().eval()


@by_family
def test_nothing_that_is_hidden_is_seen(kind: restoring.Kind) -> None:
    model, images = built(kind), some()
    hidden = right_half(images)
    changed = torch.where(hidden, 1 - images, images)
    draw, family = Draw(3, torch.arange(len(images))), kind.task.family
    with torch.no_grad():
        assert torch.equal(
            family.reconstruct(model, images, hidden, draw), family.reconstruct(model, changed, hidden, draw)
        )
        if not isinstance(family, InpaintingDiffusion):  # whose encoder is given the noisy image
            for one, other in zip(
                family.encode(model, images, hidden, draw), family.encode(model, changed, hidden, draw), strict=True
            ):
                assert torch.equal(one, other)


@by_family
def test_what_is_visible_is_seen(kind: restoring.Kind) -> None:
    model, images = built(kind), some()
    hidden = right_half(images)
    changed = torch.where(hidden, images, 1 - images)
    draw, family = Draw(3, torch.arange(len(images))), kind.task.family
    with torch.no_grad():
        one, other = (family.encode(model, each, hidden, draw) for each in (images, changed))
        assert all(not torch.equal(first, second) for first, second in zip(one, other, strict=True))


@by_family
def test_an_image_is_measured_alike_in_any_batch(kind: restoring.Kind) -> None:
    model = built(kind)
    batch = kind.task.stack((some(6),))
    order = torch.tensor([4, 1, 5])
    part = kind.task.stack((some(6)[order],))
    with torch.no_grad():
        for measure in (kind.task.losses, kind.task.outputs, kind.task.signal):
            assert torch.allclose(measure(model, batch)[order], measure(model, part), atol=1e-5)


@by_family
def test_losses_are_those_of_the_prediction(kind: restoring.Kind) -> None:
    model, images, family = built(kind), some(), kind.task.family
    hidden = right_half(images)
    draw = Draw(5)
    with torch.no_grad():
        said = family.predict(model, images, hidden, draw)
        losses = family.losses(model, images, hidden, draw)
        if isinstance(family, MaskedTokens):
            truth = model.tokens_of(images)
            smoothed = 0.9 * nn.functional.one_hot(truth, model.codes) + 0.1 / model.codes
            each = -(smoothed * said.values.log_softmax(2)).sum(2)[said.weights[..., 0]]
            expected = each.reshape(len(images), -1).mean(1)
        else:
            noise = draw.normal("noise", images.shape, images.device)
            truth = noise if isinstance(family, InpaintingDiffusion) else model.patchify(images)
            right = (said.values - truth).square()[said.weights.expand_as(truth)]
            expected = right.reshape(len(images), -1).mean(1)
    assert torch.allclose(losses, expected, atol=1e-5)
    assert bool((family.losses(model, images, hidden, draw, 1 - images) != losses).all())


@by_family
def test_a_latent_is_what_the_decoder_is_given(kind: restoring.Kind) -> None:
    model, images, family = built(kind), some(), kind.task.family
    hidden, draw = right_half(images), Draw(5)
    parts = family.parts(model)
    with torch.no_grad():
        latents, said = family.encode(model, images, hidden, draw), family.predict(model, images, hidden, draw).values
        for name in parts.encoder:
            model.get_parameter(name).mul_(1.5)
        assert not torch.equal(said, family.predict(model, images, hidden, draw).values)
        for one, other in zip(latents, family.encode(model, images, hidden, draw), strict=True):
            assert not torch.equal(one, other)
    fresh = built(kind)
    with torch.no_grad():
        for name in parts.decoder:
            fresh.get_parameter(name).add_(0.1) if "time_embedding" not in name and "position" not in name else None
        for one, other in zip(latents, family.encode(fresh, images, hidden, draw), strict=True):
            assert torch.equal(one, other) or isinstance(family, MaskedTokens)  # whose VQ model has changed too


@by_family
def test_encoder_and_decoder_are_all_there_is(kind: restoring.Kind) -> None:
    model = built(kind)
    parts = kind.task.family.parts(model)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(parts.encoder) | set(parts.decoder) == names
    assert not set(parts.encoder) & set(parts.decoder)
    assert parts.encoder
    kind.task.family.train_encoder_only(model)
    assert {name for name, each in model.named_parameters() if each.requires_grad} == set(parts.encoder)


@by_family
def test_a_path_that_is_not_there_is_refused(kind: restoring.Kind) -> None:
    family = dataclasses.replace(kind.task.family, encoder=("enkoder.layers",))
    with pytest.raises(EncoderError, match=r"no parameters under the path 'enkoder\.layers'; its outermost parts are"):
        family.parts(built(kind))


@by_family
def test_a_path_that_ends_in_nothing_is_told_what_there_is_beside_it(kind: restoring.Kind) -> None:
    model = built(kind)
    deep = next(path for path in kind.task.family.parts(model).encoder if path.count(".") > 1)
    parent = deep.rpartition(".")[0]
    there = sorted({name.removeprefix(f"{parent}.").partition(".")[0] for name, _ in model.named_parameters()
                    if name.startswith(f"{parent}.")})  # fmt: skip
    family = dataclasses.replace(kind.task.family, encoder=(f"{parent}.enkoder.0",))
    with pytest.raises(EncoderError, match=rf"'{parent}\.enkoder\.0'; the parts of {parent} are {', '.join(there)}$"):
        family.parts(model)


@by_family
def test_a_path_that_covers_the_decoder_is_refused(kind: restoring.Kind) -> None:
    model = built(kind)
    reaching = kind.task.family.family_decoder(model)[0]
    family = dataclasses.replace(kind.task.family, encoder=(*kind.task.family.family_encoder(model), reaching))
    with pytest.raises(EncoderError, match=r"covers \d+ parameters that the decoder uses"):
        family.parts(model)


def test_an_encoder_that_is_text_or_nothing_is_refused() -> None:
    for kind in restoring.FAMILIES.values():
        with pytest.raises(SettingError, match=r"encoder must be a tuple of paths, not text: write \('vit',\)"):
            dataclasses.replace(kind.task.family, encoder="vit")
        with pytest.raises(SettingError, match="encoder names no path"):
            dataclasses.replace(kind.task.family, encoder=())


def test_an_encoder_with_nothing_to_train_is_refused() -> None:
    positions = "vit.embeddings.position_embeddings"
    family = MaskedAutoencoder(encoder=(positions,))
    with pytest.raises(EncoderError, match=rf"holds nothing but what is computed \({positions}\)"):
        family.train_encoder_only(restoring.vit_mae())
    also = MaskedAutoencoder(encoder=(positions, "vit.layernorm"))
    assert set(also.parts(restoring.vit_mae()).encoder) == {"vit.layernorm.weight", "vit.layernorm.bias"}


def test_settings_of_families_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(SettingError, match=r"mask_most must be at most 1, which is the whole image, not 3\.0"):
        MaskedTokens(mask_most=3.0)
    with pytest.raises(SettingError, match=r"first_variance must be at most last_variance \(0\.01\), not 0\.5"):
        InpaintingDiffusion(first_variance=0.5)
    assert InpaintingDiffusion(first_variance=0.01).first_variance == 0.01


def test_statistics_of_another_number_of_channels_are_refused() -> None:
    family = MaskedAutoencoder(mean=(0.4, 0.5, 0.6), deviation=(0.2, 0.2, 0.2))
    task = dataclasses.replace(restoring.MAE, family=family)
    with pytest.raises(SettingError, match="3 means and deviations are given for a model of 1 channels"):
        task.losses(restoring.vit_mae(), task.stack((some(),)))
    colour = task.stack((some().repeat(1, 3, 1, 1),))
    assert bool(task.losses(restoring.vit_mae(num_channels=3), colour).isfinite().all())


def test_a_part_of_the_encoder_can_be_named() -> None:
    parts = MaskedAutoencoder(encoder=("vit.layers.1", "vit.layernorm")).parts(restoring.vit_mae())
    assert all(name.startswith(("vit.layers.1.", "vit.layernorm.")) for name in parts.encoder)
    assert "vit.layers.0.mlp.fc1.weight" in parts.decoder


def test_a_tied_head_is_parted_from_the_embedding() -> None:
    model = built(restoring.FAMILIES["masked tokens"])
    assert model.head.weight is model.embedding.weight
    before = model.head.weight.detach().clone()
    MaskedTokens().train_encoder_only(model)
    assert model.head.weight is not model.embedding.weight
    assert torch.equal(model.head.weight, before)
    assert not model.head.weight.requires_grad
    assert model.embedding.weight.requires_grad
    untied = restoring.masked_tokens(tied=False)
    assert untied.head.weight is not untied.embedding.weight


@pytest.mark.parametrize("held_by", ["itself", "another module"])
def test_weights_whose_head_was_parted_are_loaded_as_they_are(held_by: str) -> None:
    forgotten = built(restoring.FAMILIES["masked tokens"])
    MaskedTokens().train_encoder_only(forgotten)
    with torch.no_grad():
        forgotten.embedding.weight.add_(torch.randn_like(forgotten.embedding.weight))
    loaded = restoring.masked_tokens()
    one, other = (each if held_by == "itself" else nn.ModuleDict({"inner": each}) for each in (loaded, forgotten))
    one.load_state_dict(other.state_dict())
    for name, tensor in forgotten.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.head.weight is not loaded.embedding.weight
    assert loaded.head.weight.requires_grad
    images = some()
    with torch.no_grad():
        said = (
            MaskedTokens().predict(model.eval(), images, right_half(images), Draw()) for model in (loaded, forgotten)
        )
        assert torch.equal(*(each.values for each in said))


def test_a_head_stays_tied_where_weights_do_not_part_it() -> None:
    model, other = restoring.masked_tokens(), restoring.masked_tokens()
    model.load_state_dict(other.state_dict())
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, other.head.weight)
    lacking = {name: tensor for name, tensor in other.state_dict().items() if name != "head.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.weight"):
        model.load_state_dict(lacking)
    assert model.head.weight is model.embedding.weight


def test_tokens_and_positions_of_a_masked_autoencoder_are_not_left_at_zero() -> None:
    model = restoring.vit_mae()
    raw = ViTMAEForPreTraining(model.config)
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed", "decoder.mask_token"):
        assert not raw.get_parameter(name).any()
        assert model.get_parameter(name).any()
    waves = build_2d_sinusoidal_position_embedding(2, 2, 24, cls_token=True)
    by_column_first = torch.cat([waves[:, 12:], waves[:, :12]], 1)  # as the published weights have them
    assert torch.allclose(model.vit.embeddings.position_embeddings[0], by_column_first, atol=1e-6)
    with pytest.raises(ModelError, match=r"is zero throughout.*masked_autoencoder\(config\)"):
        restoring.MAE.losses(ViTMAEForPreTraining(model.config), restoring.MAE.stack((some(),)))


def test_masks_that_hide_different_numbers_of_patches_may_share_a_batch() -> None:
    model, images, family = restoring.vit_mae(patch_size=2).eval(), some(3), MaskedAutoencoder()
    hidden = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    hidden[0, :, :4], hidden[1, :, :, 6:], hidden[2, :, 2:4, 2:4] = True, True, True
    with torch.no_grad():
        together = family.predict(model, images, hidden, Draw()).values
        latents = family.encode(model, images, hidden, Draw())[0]
        for row in range(3):
            one = slice(row, row + 1)
            assert torch.allclose(
                together[one], family.predict(model, images[one], hidden[one], Draw()).values, atol=1e-5
            )
            alone = family.encode(model, images[one], hidden[one], Draw())[0]
            assert torch.allclose(latents[one, : alone.shape[1]], alone, atol=1e-5)
            assert not latents[one, alone.shape[1] :].any()
    assert model.config.mask_ratio == 0.5


def test_normalised_patches_are_drawn_with_the_brightness_of_the_truth() -> None:
    model, images, family = restoring.vit_mae(norm_pix_loss=True).eval(), some(), MaskedAutoencoder()
    with torch.no_grad():
        for parameter in model.decoder.decoder_pred.parameters():
            parameter.zero_()
        drawn = family.reconstruct(model, images, right_half(images), Draw())
    means = nn.functional.avg_pool2d(images, 4)
    assert torch.allclose(nn.functional.avg_pool2d(drawn, 4), means, atol=1e-5)


def test_pixels_are_normalised_for_the_model_and_back() -> None:
    model, images = restoring.vit_mae().eval(), some()
    family = MaskedAutoencoder(mean=(0.5,), deviation=(0.25,))
    with torch.no_grad():
        plain = MaskedAutoencoder().predict(model, (images - 0.5) / 0.25, right_half(images), Draw()).values
        assert torch.allclose(family.predict(model, images, right_half(images), Draw()).values, plain, atol=1e-6)
        drawn = family.reconstruct(model, images, right_half(images), Draw())
    assert torch.allclose(drawn, (model.unpatchify(plain) * 0.25 + 0.5).clamp(0, 1), atol=1e-5)
    with pytest.raises(SettingError, match="deviation must be above 0"):
        MaskedAutoencoder(deviation=(0.0,))
    with pytest.raises(SettingError, match="3 means and 1 deviations"):
        MaskedAutoencoder(mean=(0.5, 0.5, 0.5))


@by_family
def test_what_does_not_fit_the_model_is_refused(kind: restoring.Kind) -> None:
    model = built(kind)
    for images in (torch.rand(2, 3, 8, 8), torch.rand(2, 1, 16, 16)):
        with pytest.raises(ShapeError, match=r"images are \(\d, \d+, \d+\) .* where the model takes \(1, 8, 8\)"):
            kind.task.losses(model, kind.task.stack((images,)))
    with pytest.raises(ModelError, match=r"a Linear is no .*choose the family"):
        kind.task.losses(nn.Linear(2, 2), kind.task.stack((some(),)))


def test_a_network_without_a_condition_is_refused() -> None:
    with pytest.raises(ModelError, match="1 channels in and 1 out; it must have twice as many in"):
        restoring.DIFFUSION.losses(restoring.unet(in_channels=1), restoring.DIFFUSION.stack((some(),)))


def test_every_patch_hidden_leaves_nothing_to_a_masked_autoencoder() -> None:
    images = some()
    with pytest.raises(CorruptionError, match="hides every patch"):
        MaskedAutoencoder().predict(restoring.vit_mae(), images, torch.ones_like(images, dtype=torch.bool), Draw())


@by_family
def test_training_masks_hide_what_the_family_says(kind: restoring.Kind) -> None:
    model = built(kind)
    shape = (400, 1, 8, 8)
    masks = kind.task.family.training_mask(model, shape, Draw(0))
    assert masks.shape == shape
    assert masks.dtype == torch.bool
    assert torch.equal(masks, kind.task.family.aligned(model, masks))
    shares = masks.float().flatten(1).mean(1)
    if isinstance(kind.task.family, MaskedAutoencoder):
        assert bool((shares == 0.5).all())
    elif isinstance(kind.task.family, MaskedTokens):
        assert float(shares.min()) >= 0.5
        # mean of a normal(.55, .25) cut to [.5, 1]; rounding up to whole tokens adds half of one of 16
        assert float(shares.mean()) == pytest.approx(0.699 + 0.03, abs=0.02)
    else:
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.06)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 4


def test_draws_are_found_again_by_seed_purpose_and_position() -> None:
    device, positions = torch.device("cpu"), torch.tensor([7, 2])
    draw = Draw(1, positions)
    rows = draw.normal("a", (2, 3), device)
    assert torch.equal(rows, draw.normal("a", (2, 3), device))
    assert torch.equal(rows.flip(0), Draw(1, positions.flip(0)).normal("a", (2, 3), device))
    for other in (Draw(2, positions).normal("a", (2, 3), device), draw.normal("b", (2, 3), device)):
        assert not torch.equal(rows, other)
    assert torch.equal(Draw(1).uniform("a", (4, 2), device)[:3], Draw(1).uniform("a", (3, 2), device))
    assert not torch.equal(Draw().normal("a", (2,), device), Draw().normal("a", (2,), device))


def test_a_codebook_is_filled_from_places_of_images() -> None:
    tokenizer = restoring.masked_tokens().tokenizer
    images = restoring.pictures().tensors[0]
    fill_codebook(tokenizer, images)
    places = tokenizer.encode(images * 2 - 1).latents.movedim(1, 3).flatten(0, 2)
    nearest = torch.cdist(tokenizer.quantize.embedding.weight, places).min(1).values
    assert float(nearest.detach().max()) < 1e-3
    with pytest.raises(ShapeError, match="give 16 places for 24 entries"):
        fill_codebook(tokenizer, images[:1])
