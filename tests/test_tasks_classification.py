"""Classification: batches, losses, distances, features, heads."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge import Classification
from expunge.audit.portrait import _seen
from expunge.errors import DataError, LabelError, ModelError, NonFiniteDataError, SettingError, ShapeError
from expunge.networks import all_cnn, mlp
from expunge.tasks import asked_once

TASK = tiny.TASK


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        (np.array([1.0, 2.0], dtype=np.float32), torch.tensor([1.0, 2.0])),
        ([1, 2], torch.tensor([1.0, 2.0])),
        ((1.0, 2.0), torch.tensor([1.0, 2.0])),
        (np.array([2.0, 1.0])[::-1], torch.tensor([1.0, 2.0], dtype=torch.double)),
    ],
    ids=["tensor", "array", "list", "tuple", "reversed array"],
)
@pytest.mark.parametrize("as_mapping", [False, True])
def test_collate_takes_every_form(value: Any, expected: Tensor, as_mapping: bool) -> None:
    examples = [{"x": value, "y": 3}, {"x": value, "y": 0}] if as_mapping else [(value, 3), (value, 0)]
    batch = TASK.collate(examples)
    assert torch.equal(batch["inputs"], torch.stack([expected, expected]))
    assert batch["inputs"].dtype == expected.dtype
    assert batch["labels"].tolist() == [3, 0]
    assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 4)])
def test_pictures_become_channels_first_floats(mode: str, channels: int) -> None:
    image = picture(mode)
    inputs = TASK.collate([{"image": image, "label": 1}])["inputs"]
    assert inputs.shape == (1, channels, 4, 4)
    assert inputs.dtype == torch.float32
    expected = np.asarray(image, dtype=np.float32).reshape(4, 4, channels) / 255
    assert np.allclose(inputs[0].numpy(), expected.transpose(2, 0, 1))


def test_arrays_that_are_read_only_are_copied() -> None:
    array = np.ones(3, dtype=np.float32)
    array.setflags(write=False)
    batch = TASK.collate([(array, 0)])
    batch["inputs"].add_(1)
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("label", [2, np.int64(2), torch.tensor(2), np.uint8(2), 2.0])
def test_labels_of_every_type(label: Any) -> None:
    assert TASK.collate([([1.0], label)])["labels"].tolist() == [2]


def test_fields_can_be_named() -> None:
    task = Classification(4, inputs="photo", labels="species")
    batch = task.collate([{"photo": [1.0], "species": 1, "label": 0, "x": [5.0]}])
    assert (batch["inputs"].tolist(), batch["labels"].tolist()) == ([[1.0]], [1])
    by_position = Classification(4, inputs=2, labels=0)
    batch = by_position.collate([(3, "name", [7.0])])
    assert (batch["inputs"].tolist(), batch["labels"].tolist()) == ([[7.0]], [3])
    for fields in (by_position.fields, TASK.fields, task.fields):
        own = fields.__self__
        batch = own.stack(fields(torch.ones(2, 3), torch.tensor([1, 2])))
        assert (batch["inputs"].shape, batch["labels"].tolist()) == ((2, 3), [1, 2])


@pytest.mark.parametrize(
    ("examples", "error", "words"),
    [
        ([([1.0], 4)], LabelError, r"a label is 4, outside the 4 classes of the task \(0 to 3\); correct the label or"),
        ([([1.0], -1)], LabelError, "a label is -1"),
        ([([1.0], 1.5)], DataError, "a whole-number label 1"),
        ([([1.0], "cat")], DataError, "a whole-number label"),
        ([([1.0], None)], DataError, "a whole-number label"),
        ([([1.0], math.nan)], DataError, "a whole-number label"),
        ([([1.0], [0, 1])], DataError, "a whole-number label"),
        (
            [([math.nan], 1)],
            NonFiniteDataError,
            "an input holds NaN or infinity; clean the dataset or drop the example",
        ),
        ([([1.0], 1), ([math.inf], 1)], NonFiniteDataError, "NaN or infinity"),
        ([([1.0], 1), ([1.0, 2.0], 1)], ShapeError, r"different shapes in one batch: \(1,\), \(2,\); resize or pad"),
        (
            [(torch.tensor([1], dtype=torch.uint8), 1)],
            DataError,
            r"inputs are torch.uint8, a model needs floats; convert",
        ),
        ([("text", 1)], DataError, "lacks an input 0"),
        ([(None, 1)], DataError, "lacks an input 0"),
        ([([1.0],)], DataError, "an example has 1 fields, too few to hold a label at 1"),
        ([([1.0], 1), ([1.0],)], DataError, "lacks an input 0 or a whole-number label 1"),
        ([{"x": [1.0]}], DataError, "no label found: the examples have the fields x; name the right one explicitly"),
        ([{"y": 1}], DataError, "no input found"),
        ([{"x": [1.0], "y": 1}, {"x": [1.0]}], DataError, "lacks an input 'x' or a whole-number label 'y'"),
        ([3.0], DataError, "an example is a float; a tuple or a mapping is needed"),
    ],
)
def test_examples_that_cannot_be_used(examples: list[Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TASK.collate(examples)


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        ((torch.ones(2, 3), torch.tensor([0, 9])), LabelError, "a label is 9"),
        ((torch.ones(2, 3), torch.tensor([0.5, 1.0])), DataError, "labels of type torch.float32 and shape"),
        ((torch.ones(2, 3), torch.eye(2)), DataError, r"shape \(4,\) do not give 2 inputs one whole number each"),
        ((torch.full((2, 3), math.nan), torch.tensor([0, 1])), NonFiniteDataError, "NaN or infinity"),
        ((torch.ones(2, 3).long(), torch.tensor([0, 1])), DataError, "inputs are torch.int64"),
    ],
)
def test_columns_that_cannot_be_used(columns: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TASK.stack(columns)


def test_labels_of_a_dataset() -> None:
    data = tiny.vectors(per_class=2)
    assert all(TASK.labels_of(form(data)).tolist() == [0, 1, 2, 3] * 2 for form in tiny.FORMS.values())
    assert TASK.labels_of([]).tolist() == []
    assert TASK.labels_of(TensorDataset(torch.ones(2, 1), torch.tensor([[1.0], [2.0]]))).tolist() == [1, 2]
    for labels in (["cat", "dog"], [0.5, 1.0], ["0", "1"], [None, 1]):
        with pytest.raises(DataError, match=r"the labels in field 1 are not (whole )?numbers; map the classes to 0, 1"):
            TASK.labels_of([([1.0], label) for label in labels])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(SettingError, match="classes must be a whole number of at least 2, not 1"):
        Classification(1)
    with pytest.raises(SettingError, match="3 names were given for 4 classes"):
        Classification(4, names=("a", "b", "c"))
    assert Classification(2, names=("cat", "dog")).groups({"labels": torch.tensor([1, 0, 1])}) == ["dog", "cat", "dog"]
    assert TASK.groups({"labels": torch.tensor([3])}) == ["3"]


class Fixed(nn.Module):
    """Says the same whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.5, 3.0, 0.0], [-40.0, 60.0, 0.0, 0.0]])
BATCH = {"inputs": torch.ones(3, 2), "labels": torch.tensor([0, 1, 1])}


def test_losses_quality_and_answers() -> None:
    model = Fixed(LOGITS)
    assert torch.allclose(TASK.losses(model, BATCH), -LOGITS.log_softmax(1)[range(3), BATCH["labels"]])
    assert TASK.quality(model, BATCH)["accuracy"].tolist() == [1, 0, 1]
    answers = TASK.answers(LOGITS)
    assert list(answers) == ["0", "1", "2", "3"]
    assert torch.allclose(torch.stack(list(answers.values()), 1), LOGITS.double().softmax(1))


def test_signal_is_the_logit_of_the_confidence() -> None:
    signal = TASK.signal(Fixed(LOGITS.double()), {**BATCH, "inputs": torch.ones(3, 2).double()})
    confidence = LOGITS.double().softmax(1)[range(3), BATCH["labels"]]
    assert torch.allclose(signal[:2], torch.log(confidence / (1 - confidence))[:2])
    # Confidence 1 - 1e-26 is 1 in double precision: the formula would divide by zero there.
    assert float(signal[2].detach()) == pytest.approx(60 - math.log(2), abs=1e-6)


def test_divergence_is_that_of_jensen_and_shannon() -> None:
    one, other = (torch.randn(50, 4, generator=torch.Generator().manual_seed(seed)) * 5 for seed in (1, 2))
    expected = jensenshannon(one.double().softmax(1).numpy(), other.double().softmax(1).numpy(), axis=1) ** 2
    assert torch.allclose(TASK.divergence(one, other), torch.from_numpy(expected), atol=1e-12)
    assert torch.allclose(TASK.divergence(one, other), TASK.divergence(other, one))
    assert TASK.divergence(one, one).abs().max() < 1e-12
    far = TASK.divergence(torch.tensor([[1e4, 0, 0, 0.0]]), torch.tensor([[0, 1e4, 0, 0.0]]))
    assert float(far) == pytest.approx(math.log(2))


def test_outputs_are_in_single_precision_at_least() -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        model = mlp(2, 4, hidden=(3,)).to(dtype)
        assert TASK.outputs(model, BATCH).dtype == expected
    assert TASK.outputs(tiny.tiny_vit(), {"inputs": torch.ones(2, 3, 8, 8)}).shape == (2, 4)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(
        ShapeError, match=r"does not accept inputs of shape \(2,\).*check the size and the order of axes"
    ):
        TASK.outputs(mlp(5, 4), BATCH)
    with pytest.raises(ShapeError, match="channels first"):
        TASK.outputs(tiny.SHAPES["small_cnn"].build().eval(), {"inputs": torch.ones(2, 8, 8, 3)})
    with pytest.raises(
        ModelError, match=r"outputs of shape \(3, 7\) for 3 inputs, where \(3, 4\) was expected; set `cl"
    ):
        TASK.outputs(mlp(2, 7), BATCH)
    with pytest.raises(ModelError, match=r"outputs of shape \(3, 4, 1\)"):
        TASK.outputs(Fixed(LOGITS[..., None]), BATCH)

    class Broken(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise RuntimeError("the cable is unplugged")

    with pytest.raises(RuntimeError, match="the cable is unplugged"):
        TASK.outputs(Broken(2, 4), BATCH)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_features_are_what_the_head_sees(shape: str) -> None:
    kind = tiny.SHAPES[shape]
    torch.manual_seed(0)
    model = kind.build().eval()
    batch = TASK.stack(kind.data()[:5])
    with torch.no_grad():
        features, head = TASK.features(model, batch), TASK.head_of(model)
        assert features.ndim == 2
        weight = head.weight.flatten(1)
        assert torch.allclose(features @ weight.T + head.bias, TASK.outputs(model, batch), atol=1e-5)
    assert not head._forward_pre_hooks, "nothing stays behind"


def test_heads_are_found_or_named() -> None:
    model = mlp(3, 4, hidden=(4,))
    assert TASK.head_of(model) is model[2]
    assert Classification(4, head="0").head_of(model) is model[0]
    with pytest.raises(ModelError, match="the model has no Linear or Conv2d named '1'"):
        Classification(4, head="1").head_of(model)
    with pytest.raises(
        ModelError, match="no Linear or Conv2d with 9 outputs was found; name the last layer with `head`"
    ):
        Classification(9).head_of(model)

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 4), nn.Linear(2, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.used(inputs)

    with pytest.raises(ModelError, match="the head took no part in the forward pass"):
        TASK.features(Idle(), BATCH)
    assert Classification(4, head="used").features(Idle(), BATCH).shape == (3, 2)


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "convolution", "ViT"])
def test_a_head_is_refitted(kind: str) -> None:
    torch.manual_seed(0)
    data = tiny.vectors(spread=0.3) if "linear" in kind else tiny.images(spread=0.3)
    model = {
        "linear": lambda: mlp(tiny.FEATURES, 4, hidden=(32,)),
        "linear without bias": lambda: nn.Sequential(
            nn.Linear(tiny.FEATURES, 32), nn.ReLU(), nn.Linear(32, 4, bias=False)
        ),
        "convolution": lambda: all_cnn(3, 4, width=8),
        "ViT": tiny.tiny_vit,
    }[kind]()
    with torch.no_grad():
        for _ in range(30):
            model.train()(data.tensors[0])  # gives BatchNorm statistics of these data
    body = {name: value.clone() for name, value in model.state_dict().items()}
    TASK.refit_head(model, [TASK.stack(data[index]) for index in (slice(0, 50), slice(50, None))])
    assert tiny.accuracy(model, data) > 0.97, "an untrained body separates these data"
    head = {id(value) for value in TASK.head_of(model).parameters()}
    for name, value in model.named_parameters():
        if id(value) not in head:
            assert torch.equal(value, body[name]), name


@pytest.mark.parametrize("kept", [(1, 3), (0, 1, 2)])
def test_a_class_that_was_not_seen_is_never_predicted(kept: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    data, model = tiny.vectors(spread=0.3), mlp(tiny.FEATURES, 4, hidden=(32,))
    seen = torch.isin(data.tensors[1], torch.tensor(kept))
    batch = TASK.stack((data.tensors[0][seen], data.tensors[1][seen]))
    TASK.refit_head(model, [batch])
    predicted = tiny.logits(model, data).argmax(1)
    assert set(predicted.tolist()) == set(kept)
    assert float((predicted[seen] == data.tensors[1][seen]).double().mean()) > 0.97


def test_one_class_is_not_enough_for_a_head() -> None:
    data, model = tiny.vectors(), mlp(tiny.FEATURES, 4)
    alone = data.tensors[1] == 2
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match="needs examples of two classes at least; add examples of other classes"):
        TASK.refit_head(model, [TASK.stack((data.tensors[0][alone], data.tensors[1][alone]))])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_losses_match_torch_on_a_whole_set() -> None:
    data, model = tiny.vectors(), mlp(tiny.FEATURES, 4)
    losses = TASK.losses(model, TASK.stack(data.tensors))
    assert torch.allclose(losses, F.cross_entropy(model(data.tensors[0]), data.tensors[1], reduction="none"))


class Counting(nn.Module):
    """Counts the batches it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(12, tiny.CLASSES)
        self.asked = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked += 1
        return self.inner(inputs)


def test_a_model_is_asked_once_about_a_batch_and_says_the_same() -> None:
    model, batches = Counting().eval(), [TASK.stack(tiny.vectors(5, seed=seed).tensors) for seed in (0, 1)]
    apart = [(TASK.quality(model, batch), TASK.signal(model, batch), TASK.losses(model, batch)) for batch in batches]
    assert model.asked == 6
    with asked_once():
        for batch, (quality, signal, losses) in zip(batches, apart, strict=True):
            TASK.outputs(model, batch).zero_()  # no task that changes what it is given spoils what others are given
            assert torch.equal(TASK.quality(model, batch)["accuracy"], quality["accuracy"])
            assert torch.equal(TASK.signal(model, batch), signal)
            assert torch.equal(TASK.losses(model, batch), losses)
            assert TASK.features(model, batch).shape == (20, 64)
    assert model.asked == 6 + 4  # the features are read off in a pass of their own
    TASK.outputs(model, batches[0])
    assert model.asked == 11


class Halved(Classification):
    """Asks a model whose head is halved for the while."""

    def signal(self, model: nn.Module, batch: Any) -> Tensor:
        head = self.head_of(model)
        with torch.no_grad():
            head.weight.mul_(0.5)
            found = super().signal(model, batch)
            head.weight.mul_(2)
        return found


def test_the_audit_reads_a_task_of_the_users_own_as_the_task_says() -> None:
    model, batch = mlp(12, tiny.CLASSES).eval(), TASK.stack(tiny.vectors(5).tensors)
    for task in (TASK, Halved(tiny.CLASSES)):
        with torch.inference_mode():
            seen = _seen(task, model, batch)
        assert seen.signals.tolist() == task.signal(model, batch).double().tolist()
    assert not torch.equal(Halved(tiny.CLASSES).signal(model, batch), TASK.signal(model, batch))


def test_another_model_is_asked_itself() -> None:
    first, second, batch = Counting().eval(), Counting().eval(), TASK.stack(tiny.vectors(5).tensors)
    with asked_once():
        assert not torch.equal(TASK.outputs(first, batch), TASK.outputs(second, batch))
