"""Every loss of the methods for language models against its formula, written out token by token."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import tiny
import words
from expunge import Run, unlearn
from expunge.methods import NPO, RMU, UNDIAL, GradDiff, IdkDPO, Method, SimNPO, TaskNegation
from expunge.methods._labelled import labelled
from expunge.methods._language import Student
from expunge.methods.idk_dpo import dpo_loss
from expunge.methods.npo import npo_loss
from expunge.methods.sim_npo import sim_npo_loss
from expunge.methods.undial import undial_loss
from expunge.problem import Problem
from expunge.tasks._text import NUMBER


@pytest.fixture(scope="module")
def problem() -> Problem:
    return words.problem(words.recipe(epochs=6)(words.facts(), seed=0))


def token_log_probabilities(model: GPT2LMHeadModel, row: dict[str, Tensor]) -> Tensor:
    """Log-probabilities at each labelled token of one example, without padding: (tokens, vocabulary)."""
    logits = model(input_ids=row["input_ids"][None]).logits[0]
    places = [place for place in range(1, len(row["labels"])) if row["labels"][place] != -100]
    return torch.stack([logits[place - 1].log_softmax(0) for place in places])


def answer(row: dict[str, Tensor]) -> Tensor:
    return row["labels"][row["labels"] != -100]


def sequence(model: GPT2LMHeadModel, row: dict[str, Tensor]) -> Tensor:
    log_p = token_log_probabilities(model, row)
    return sum(log_p[place, token] for place, token in enumerate(answer(row)))


def nll(model: GPT2LMHeadModel, row: dict[str, Tensor]) -> Tensor:
    return -sequence(model, row) / len(answer(row))


def rows_of(dataset: Any) -> list[dict[str, Tensor]]:
    return words.TASK.tokenized(dataset).dataset


# Formulas by hand.


def npo_by_hand(model: Any, original: Any, row: dict[str, Tensor], beta: float) -> Tensor:
    ratio = (sequence(model, row) - sequence(original, row).detach()).exp()
    return 2 / beta * torch.log(1 + ratio**beta)


def kl_by_hand(model: Any, original: Any, row: dict[str, Tensor]) -> Tensor:
    p, q = token_log_probabilities(original, row).detach().exp(), token_log_probabilities(model, row).exp()
    return (p * (p / q).log()).sum() / len(p)


def undial_by_hand(model: Any, original: Any, row: dict[str, Tensor], strength: float) -> Tensor:
    target = token_log_probabilities(original, row).detach()
    for place, token in enumerate(answer(row)):
        target[place, token] -= strength
    return -(target.softmax(1) * token_log_probabilities(model, row)).sum() / len(target)


def test_losses_equal_their_formulas() -> None:
    log_p, log_ref = torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -2.0])
    for p, ref, loss in zip(log_p, log_ref, npo_loss(log_p, log_ref, 0.3), strict=True):
        sigmoid = 1 / (1 + math.exp(-(-0.3 * (p - ref))))
        assert math.isclose(loss, -2 / 0.3 * math.log(sigmoid), rel_tol=1e-5)
    beta, gamma, mean = 2.5, 1.0, torch.tensor([0.2, 3.0])
    as_printed = -2 / beta * torch.nn.functional.logsigmoid(beta * mean - gamma)  # Fan et al. 2024
    assert torch.allclose(sim_npo_loss(mean, beta, gamma / beta), as_printed)
    for mean, loss in zip((0.2, 3.0), sim_npo_loss(torch.tensor([0.2, 3.0]), 2.5, 0.4), strict=True):
        assert math.isclose(loss, -2 / 2.5 * math.log(1 / (1 + math.exp(-(2.5 * (mean - 0.4))))), rel_tol=1e-5)
    sigmoid = 1 / (1 + math.exp(-0.1 * (1.5 - -4.0)))
    assert math.isclose(dpo_loss(torch.tensor(1.5), torch.tensor(-4.0), 0.1), -20 * math.log(sigmoid), rel_tol=1e-5)
    logits, original = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.0, 3.0, 1.0]])
    weights = [math.exp(0.0), math.exp(3.0 - 10), math.exp(1.0)]
    shares = [weight / sum(weights) for weight in weights]
    log_q = [value - math.log(sum(math.exp(each) for each in (1.0, 2.0, 0.5))) for value in (1.0, 2.0, 0.5)]
    wanted = -sum(share * log for share, log in zip(shares, log_q, strict=True))
    assert math.isclose(undial_loss(logits, original, torch.tensor([1]), 10.0), wanted, rel_tol=1e-5)


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
@pytest.mark.parametrize("name", ["GradDiff", "NPO", "SimNPO"])
def test_a_run_is_that_of_a_transcription_with_a_second_model(name: str, retain_loss: str, problem: Problem) -> None:
    common: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 100, "retain_loss": retain_loss}
    method: Any = {
        "GradDiff": GradDiff(**common, forget_weight=0.5),
        "NPO": NPO(**common, beta=0.2),
        "SimNPO": SimNPO(**common, beta=2.5, forget_weight=0.5, margin=0.1),
    }[name]
    result = unlearn(problem, method, execution=tiny.QUIET)
    model, original = words.gpt2(), words.gpt2()
    model.load_state_dict(problem.model.state_dict())
    original.load_state_dict(problem.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    forget, retain = rows_of(problem.forget), rows_of(problem.retain)
    history = []
    for _ in range(3):  # one batch holds everything, so that the order of examples is no matter
        lost = {
            "GradDiff": lambda row: -nll(model, row),
            "NPO": lambda row: npo_by_hand(model, original, row, 0.2),
            "SimNPO": lambda row: -2 / 2.5 * torch.log(torch.sigmoid(2.5 * (nll(model, row) - 0.1))),
        }[name]
        kept = (lambda row: nll(model, row)) if retain_loss == "nll" else lambda row: kl_by_hand(model, original, row)
        loss = method.forget_weight * sum(map(lost, forget)) / len(forget) + sum(map(kept, retain)) / len(retain)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert result.record.phases[0].history == pytest.approx(history, abs=2e-5)
    assert torch.allclose(tiny.flat(result.model), tiny.flat(model), atol=2e-4)


def test_predictions_at_labelled_tokens_are_those_of_the_whole_batch(problem: Problem) -> None:
    rows = rows_of(problem.retain)
    batch = words.TASK.collate([rows[number] for number in (0, 1, 5)])
    with torch.no_grad():
        said, shown = (
            labelled(words.TASK, problem.model, batch),
            labelled(words.TASK, problem.model, batch, logits=False),
        )
        seen, whole = words.TASK.seen(problem.model, batch)
        losses = words.TASK.losses(problem.model, batch)
    assert said.logits.shape == (int(whole.mask.sum()), whole.logits.shape[2])
    torch.testing.assert_close(said.logits, whole.logits[whole.mask])
    torch.testing.assert_close(said.targets, whole.targets[whole.mask])
    torch.testing.assert_close(said.mean(said.losses), losses)
    torch.testing.assert_close(shown.seen, seen[whole.mask])
    assert len(shown.logits) == 0


class _Capped(GPT2LMHeadModel):
    """A model that bounds its logits, as Gemma does; some texts never reach the bound."""

    most = math.inf

    def forward(self, *arguments: Any, **named: Any) -> Any:
        said = super().forward(*arguments, **named)
        return said.__class__(**{**said, "logits": said.logits.clamp(max=self.most)})


def test_the_divergence_holds_where_only_later_examples_reach_a_bound_of_the_logits(problem: Problem) -> None:
    model = _Capped(problem.model.config)
    model.load_state_dict(problem.model.state_dict())
    model.transformer.wte.weight.data[words.WORDS.index("lima")] *= 3  # its logit is large where it is the answer
    rows = sorted(rows_of(problem.retain), key=lambda row: _largest_logit(model, row))
    model.most = (_largest_logit(model, rows[0]) + _largest_logit(model, rows[-1])) / 2
    rows = [row | {NUMBER: number} for number, row in enumerate(rows)]
    student = Student.prepare(
        dataclasses.replace(problem, model=model), Run(words.TASK, 0, tiny.QUIET), lora=None, batch_size=2
    )
    same = student.divergence_from_original(rows)(student.model, words.TASK.collate(rows))
    assert torch.allclose(same, torch.zeros_like(same), atol=1e-5), "a model does not diverge from itself"


def _largest_logit(model: Any, row: dict[str, Tensor]) -> float:
    return model(input_ids=row["input_ids"][None]).logits[0, :-1][row["labels"][1:] != -100].max().item()


def test_undial_leaves_prompts_and_padding_alone(problem: Problem) -> None:
    method = UNDIAL(1e-3, epochs=3, batch_size=100, strength=6.0)
    result = unlearn(problem, method, execution=tiny.QUIET)
    model, original = words.gpt2(), problem.model
    model.load_state_dict(original.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    history = []
    for _ in range(3):
        forget = rows_of(problem.forget)
        loss = sum(undial_by_hand(model, original, row, 6.0) for row in forget) / len(forget)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert result.record.phases[0].history == pytest.approx(history, abs=2e-5)


def test_the_first_loss_of_a_preference_is_known(problem: Problem) -> None:
    """Before the first step both ratios are 0 and the sigmoid one half, whatever is preferred."""
    method = IdkDPO(
        epochs=1, batch_size=100, retain_loss="kl", beta=0.25, refusals=("not known .", "what is the job ?")
    )
    assert unlearn(problem, method, execution=tiny.QUIET).record.phases[0].history == pytest.approx([8 * math.log(2)])


def test_a_refusal_becomes_likelier_than_the_answer(problem: Problem) -> None:
    method = IdkDPO(5e-3, epochs=20, batch_size=100, refusals=("not known .",))
    model = unlearn(problem, method, execution=tiny.QUIET).model
    for asked in problem.forget:
        row, refused = rows_of([asked, asked | {"answer": "not known ."}])
        before = sequence(problem.model, refused) - sequence(problem.model, row)
        assert sequence(model, refused) - sequence(model, row) > before + 1


def test_rmu_moves_forget_activations_to_the_direction_and_holds_the_others(problem: Problem) -> None:
    method = RMU(3e-3, epochs=40, batch_size=100, layer=0, steering=3.0, trained_layers=1)
    result = unlearn(problem, method, execution=tiny.QUIET)
    still = {
        name
        for name, value in result.model.state_dict().items()
        if torch.equal(value, problem.model.state_dict()[name])
    }
    assert {name.split(".")[2] for name in set(result.model.state_dict()) - still} == {"0"}
    history = result.record.phases[0].history
    assert history[-1] < 0.3 * history[0]

    def inside(model: Any, row: dict[str, Tensor]) -> Tensor:
        hidden = model(input_ids=row["input_ids"][None], output_hidden_states=True).hidden_states[1][0]
        return hidden[row["labels"] != -100]

    direction = torch.rand(32, generator=Run(words.TASK, 0, tiny.QUIET).generator("direction"))
    target = 3.0 * direction / direction.norm()
    by_hand = torch.stack([(inside(problem.model, row) - target).square().mean() for row in rows_of(problem.forget)])
    assert history[0] == pytest.approx(float(by_hand.detach().mean()), rel=1e-4), "the retain term starts at 0"


def test_task_negation_goes_to_the_other_side(problem: Problem) -> None:
    method = TaskNegation(1e-3, epochs=2, batch_size=100, scale=0.5)
    negated = tiny.flat(unlearn(problem, method, execution=tiny.QUIET).model)
    learned = tiny.flat(unlearn(problem, dataclasses.replace(method, scale=1.0), execution=tiny.QUIET).model)
    original = tiny.flat(problem.model)
    assert torch.allclose(negated - original, 0.5 * (learned - original), atol=1e-6)
    model = unlearn(problem, method, execution=tiny.QUIET).model
    assert all(nll(model, row) > nll(problem.model, row) for row in rows_of(problem.forget))


BY_SIGN: dict[str, Method] = {
    "GradDiff": GradDiff(3e-3, epochs=4, batch_size=3),
    "GradDiff KL": GradDiff(3e-3, epochs=4, batch_size=3, retain_loss="kl"),
    "NPO": NPO(3e-3, epochs=4, batch_size=3),
    "SimNPO": SimNPO(3e-3, epochs=4, batch_size=3, forget_weight=1.0, retain_weight=0.1, beta=0.5),
    "UNDIAL": UNDIAL(3e-3, epochs=4, batch_size=3),
    "IdkDPO": IdkDPO(3e-3, epochs=8, batch_size=3, refusals=("not known .",)),
    "TaskNegation": TaskNegation(1e-3, epochs=4, batch_size=3, scale=1.0),
    "RMU": RMU(3e-3, epochs=40, batch_size=3, layer=1, steering=20.0),
}


@pytest.mark.parametrize("name", BY_SIGN)
def test_answers_to_be_forgotten_become_less_likely(name: str, problem: Problem) -> None:
    gains = []
    for seed in range(3):
        model = unlearn(problem, BY_SIGN[name], seed=seed, execution=tiny.QUIET).model
        with torch.no_grad():
            gains += [float(nll(model, row) - nll(problem.model, row)) for row in rows_of(problem.forget)]
    assert tiny.interval(gains)[0] > 0
