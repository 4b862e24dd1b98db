"""NPO and GradDiff-KL in the library beside a plain transcription that keeps a second model as its reference.

Both see the same batches of the same made-up tokens and start from the same weights, in turn, in this one process; the
losses of all steps must agree to 1e-4. The transcription does what published scripts do: at every step it runs the
reference model on the batch, and both models give logits at every token, prompt and padding among them. Memory is the
rise of resident memory in a process of its own, beyond the original that the caller holds in both ways. That is what an
accelerator would have to hold, where the caller's model stays outside. Where all lie in one memory, a script may take
the caller's own model for its reference: `reference shared` is that. Run with `make bench BENCH=text_transcription`.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from _memory import apart, measure
from _results import Results, draw_ratios, interval, size_from_arguments
from expunge import NPO, CausalLM, Execution, GradDiff, LoraSettings, Problem, unlearn
from expunge.methods._language import Student, WithRetainLoss
from expunge.methods.adapters import adapted
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Run, Term, reproducible, seed_globals
from expunge.training.batches import Plan, stream
from expunge.training.seeds import derive

QUIET = Execution(device="cpu", progress=False, threads=1)
REPETITIONS = {"quick": 4, "full": 12}
RATE, BATCH, EPOCHS, FORGET, RETAIN = 1e-4, 8, 3, 32, 400
TASK = CausalLM()
METHODS: dict[str, WithRetainLoss] = {
    "NPO": NPO(RATE, epochs=EPOCHS, batch_size=BATCH),
    "GradDiff, KL": GradDiff(RATE, epochs=EPOCHS, batch_size=BATCH, retain_loss="kl"),
    "NPO, LoRA": NPO(RATE, epochs=EPOCHS, batch_size=BATCH, adapter=LoraSettings()),
    "GradDiff, KL, LoRA": GradDiff(RATE, epochs=EPOCHS, batch_size=BATCH, retain_loss="kl", adapter=LoraSettings()),
}
LIBRARY, PLAIN, SHARED = "expunge", "transcription", "transcription, reference shared"


@dataclass(frozen=True)
class Shape:
    """A GPT-2 and its examples.

    Attributes:
        width: Features.
        blocks: Blocks.
        words: Vocabulary.
        prompt: Fewest and most tokens of a prompt.
        answer: Fewest and most tokens of an answer.
    """

    width: int
    blocks: int
    words: int
    prompt: tuple[int, int] = (10, 30)
    answer: tuple[int, int] = (10, 60)


TIMED = Shape(width=128, blocks=4, words=4096)
WEIGHED = Shape(width=384, blocks=6, words=4096)
"""Weights outweigh activations, as they do for models that are worth unlearning."""


def main() -> None:
    """Compare trajectories, times and memory."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    settings = {"timed": repr(TIMED), "weighed": repr(WEIGHED), "methods": {n: repr(m) for n, m in METHODS.items()}}
    results = Results("text_transcription", size, settings)
    for name in METHODS:
        for number in range(REPETITIONS[size.name]):
            results.cell(f"{name} · time · {number}", lambda name=name, number=number: both(name, number))
        for way in (LIBRARY, PLAIN, SHARED):
            results.cell(f"{name} · memory · {way}", lambda name=name, way=way: apart(weighed, name, way, threads=1))
    report(results, range(REPETITIONS[size.name]))


def both(name: str, number: int) -> dict[str, Any]:
    """One run of each; which goes first alternates."""
    problem, method, cell = made_up(TIMED), METHODS[name], dict[str, Any]()
    for way in (LIBRARY, PLAIN) if number % 2 else (PLAIN, LIBRARY):
        found = WAYS[way](problem, method, number)
        cell |= {f"{way}, {what}": value for what, value in vars(found).items() if what not in ("losses", "model")}
        cell[way] = found
    ours, plain = cell.pop(LIBRARY), cell.pop(PLAIN)
    cell["largest difference of losses"] = max(abs(a - b) for a, b in zip(ours.losses, plain.losses, strict=True))
    cell["largest difference of weights"] = max(
        float((one - other).abs().max())
        for one, other in zip(ours.model.state_dict().values(), plain.model.state_dict().values(), strict=True)
    )
    return cell


def weighed(name: str, way: str) -> dict[str, Any]:
    """The rise of resident memory after a run on a tiny model has loaded what there is to load."""
    WAYS[way](made_up(Shape(32, 1, 128)), METHODS[name], 0)
    problem = made_up(WEIGHED)
    method = replace(METHODS[name], epochs=0.5)  # the first step has allocated all that later ones need
    _, _, rise = measure(lambda: WAYS[way](problem, method, 0).losses)
    return {"peak bytes": rise, "bytes of the weights": 4 * sum(each.numel() for each in problem.model.parameters())}


@cache
def made_up(shape: Shape) -> Problem:
    """A model with random weights and random tokens: neither time nor memory depends on what they say."""
    torch.manual_seed(0)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    longest = shape.prompt[1] + shape.answer[1]
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=shape.words, n_positions=longest, n_embd=shape.width, n_layer=shape.blocks, n_head=4,
                   bos_token_id=0, eos_token_id=0, **still)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> list[dict[str, Any]]:
        prompts, answers = (
            torch.randint(low, high + 1, (count,), generator=generator).tolist()
            for low, high in (shape.prompt, shape.answer)
        )
        return [
            {
                "input_ids": torch.randint(1, shape.words, (prompt + answer,), generator=generator).tolist(),
                "prompt_length": prompt,
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    return Problem(network.eval(), TASK, rows(FORGET), rows(RETAIN))


@dataclass(frozen=True)
class Outcome:
    """What a run found and took: seconds of everything, and of the mean step."""

    model: nn.Module
    losses: list[float]
    seconds: float
    step: float


def library(problem: Problem, method: WithRetainLoss, seed: int) -> Outcome:
    """The library's method."""
    found = unlearn(problem, method, seed=seed, execution=QUIET)
    (phase,) = found.record.phases
    return Outcome(found.model, phase.history, found.record.seconds, phase.seconds / phase.steps)


def transcription(problem: Problem, method: WithRetainLoss, seed: int, *, shared: bool = False) -> Outcome:
    """The same training, written plainly, with a second model."""
    with reproducible(QUIET.threads):
        batches = list(batches_of(problem, method, seed))  # the library's own order, so that both see the same
        started = time.perf_counter()
        model = copy.deepcopy(problem.model)
        reference = problem.model if shared else copy.deepcopy(problem.model)
        adapter = None
        if method.adapter is not None:
            seed_globals(seed, "adapter")
            adapter = adapted(model, method.adapter)
            model = adapter.model
        model.train()
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=method.learning_rate, weight_decay=method.weight_decay)
        losses: list[float] = []
        steps_started = time.perf_counter()
        for forget, retain in batches:
            optimizer.zero_grad()
            loss = forget_loss(model, reference, forget, method) + retain_loss(model, reference, retain, method)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, method.clip_norm or float("inf"))
            optimizer.step()
            losses.append(float(loss.detach()))
        step = (time.perf_counter() - steps_started) / len(losses)
        finished = (model if adapter is None else adapter.merged()).eval()
        return Outcome(finished, losses, time.perf_counter() - started, step)


WAYS: dict[str, Callable[[Problem, WithRetainLoss, int], Outcome]] = {
    LIBRARY: library,
    PLAIN: transcription,
    SHARED: lambda problem, method, seed: transcription(problem, method, seed, shared=True),
}


def forget_loss(model: nn.Module, reference: nn.Module, batch: TextBatch, method: WithRetainLoss) -> Tensor:
    """The negative preference loss against the reference, or ascent."""
    own, tokens = log_probabilities(model, batch)
    if not isinstance(method, NPO):
        return (own.sum(1) / tokens).mean()
    with torch.no_grad():
        before, _ = log_probabilities(reference, batch)
    ratio = own.sum(1) - before.sum(1)
    return (-2 / method.beta * F.logsigmoid(-method.beta * ratio)).mean()


def retain_loss(model: nn.Module, reference: nn.Module, batch: TextBatch, method: WithRetainLoss) -> Tensor:
    """The likelihood of retained answers, or KL(reference || model) at their tokens."""
    if method.retain_loss == "nll":
        own, tokens = log_probabilities(model, batch)
        return -(own.sum(1) / tokens).mean()
    there = batch["labels"][:, 1:] != -100
    own_logs = logits(model, batch).log_softmax(2)
    with torch.no_grad():
        before_logs = logits(reference, batch).log_softmax(2)
    by_token = (before_logs.exp() * (before_logs - own_logs)).sum(2) * there
    return (by_token.sum(1) / there.sum(1)).mean()


def log_probabilities(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Of each labelled token, zero elsewhere: (batch, length - 1); and how many an example has: (batch,)."""
    labels = batch["labels"][:, 1:]
    there = labels != -100
    logs = logits(model, batch).log_softmax(2)
    return logs.gather(2, labels.clamp(min=0)[..., None])[..., 0] * there, there.sum(1)


def logits(model: nn.Module, batch: TextBatch) -> Tensor:
    """At every token but the last: (batch, length - 1, vocabulary)."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]


def batches_of(problem: Problem, method: WithRetainLoss, seed: int) -> Iterator[tuple[TextBatch, TextBatch]]:
    """What the library's loop draws at each step: a batch of forget rows and one of retained rows."""
    run = Run(TASK, seed, QUIET)
    student = Student(run, TASK, problem.model, TASK.tokenized(problem.forget).dataset, problem, None, BATCH)
    terms = [Term(each, TASK.losses, batch_size=BATCH) for each in (student.forget, method.retained(student))]
    plan = Plan(terms, round(method.epochs * terms[0].steps_per_epoch), derive(seed, "phase", "unlearn"))
    for (_, forget), (_, retain) in stream(plan, TASK, 0, 0):
        yield forget, retain


def report(results: Results, numbers: range) -> None:
    """Print differences, ratios with intervals and memory, and draw the ratios of time."""
    print("| | largest difference of losses | a step: times as fast | whole run: times as fast | "
          "memory: share of the transcription's | share where the reference is shared |")  # fmt: skip
    print("| --- " * 6 + "|")
    ratios: dict[str, list[float]] = {}
    for name in METHODS:
        cells = [results.cells[f"{name} · time · {number}"] for number in numbers]
        ratios[name], whole = (
            [cell[f"{PLAIN}, {what}"] / cell[f"{LIBRARY}, {what}"] for cell in cells] for what in ("step", "seconds")
        )
        peak = {way: results.cells[f"{name} · memory · {way}"]["peak bytes"] for way in (LIBRARY, PLAIN, SHARED)}
        furthest = max(cell["largest difference of losses"] for cell in cells)
        seconds = statistics.mean(cell[f"{LIBRARY}, step"] for cell in cells)
        step = f"{interval(ratios[name], 2)} ({1e3 * seconds:.0f} ms)"
        share = f"{peak[LIBRARY] / peak[PLAIN]:.2f} ({peak[LIBRARY] / 1e6:.0f} MB)"
        print(
            f"| {name} | {furthest:.1e} | {step} | {interval(whole, 2)} | {share} "
            f"| {peak[LIBRARY] / peak[SHARED]:.2f} |"
        )
    draw_ratios(results, ratios, "a step: times as fast as the transcription's, each repetition")


if __name__ == "__main__":
    main()
