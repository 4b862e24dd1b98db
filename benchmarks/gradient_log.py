"""What a gradient log costs: the time of a training step with one beside the time without, and bytes an example.

Both ways train the same tied GPT-2 (6 layers of 128, 1.3 M parameters; or 4 layers of 512, 13 M) from the same weights
on the same batches, in turns of one step within this process, so that whatever else the machine does falls on both
alike. The ratio is of summed times.
Run with `make bench BENCH=gradient_log`.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel

from _results import Results, size_from_arguments
from expunge import CausalLM
from expunge.states import GradientLog, GradientRecorder

WORDS, CONTEXT, BATCH = 600, 128, 8
NARROW, WIDE = (6, 128), (4, 512)
EXAMPLES = {"quick": 160, "full": 480}
WAYS: dict[str, dict[str, Any]] = {
    "embedding, raw": {"layers": ("embedding",), "epochs": "first", "updates": False},
    "embedding": {"layers": ("embedding",), "epochs": "first"},
    "embedding and head": {"layers": ("embedding", "head"), "epochs": "first"},
    "all, raw": {"updates": False},
    "all, raw, bf16": {"updates": False, "precision": "bf16"},
    "all": {},
    "all, bf16": {"precision": "bf16"},
}
WIDE_WAYS = ("embedding", "all", "all, bf16")


def main() -> None:
    """Time each way."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    settings = {"words": WORDS, "context": CONTEXT, "batch": BATCH, "examples": EXAMPLES[size.name], "threads": 1}
    results = Results("gradient_log", size, settings)
    asked = [(NARROW, name, name) for name in WAYS] + [(WIDE, name, f"4 x 512: {name}") for name in WIDE_WAYS]
    cells = {
        title: results.cell(title, partial(beside_none, WAYS[name], EXAMPLES[size.name], shape))
        for shape, name, title in asked
    }
    report(results, cells)


def beside_none(settings: dict[str, Any], examples: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Train with a log of these settings and without, step by step in turns."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(CONTEXT // 2, CONTEXT + 1, (examples,), generator=generator).tolist()
    data = [{"input_ids": torch.randint(1, WORDS, (length,), generator=generator).tolist()} for length in lengths]
    task = CausalLM()
    models = [network(*shape), network(*shape)]
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-3) for model in models]
    folder = Path(tempfile.mkdtemp())
    seconds: list[list[float]] = [[], []]
    try:
        log = GradientLog.create(folder / "log", models[0], task, data, **settings)
        with GradientRecorder(log, models[0], optimizers[0]) as recorder:
            for step, ids in enumerate(batches(examples)):
                batch = task.collate([data[number] for number in ids])
                for way in (0, 1) if step % 2 else (1, 0):
                    started = time.perf_counter()
                    with recorder.examples(ids) if way == 0 else nullcontext():
                        task.losses(models[way], batch).mean().backward()
                    optimizers[way].step()
                    optimizers[way].zero_grad()
                    seconds[way].append(time.perf_counter() - started)
        held = recorder.log.store.bytes
    finally:
        shutil.rmtree(folder)
    logged, plain = (way[2:] for way in seconds)
    parameters = sum(parameter.numel() for parameter in models[0].parameters())
    return {
        "overhead": sum(logged) / sum(plain) - 1,
        "overhead of the median step": statistics.median(logged) / statistics.median(plain) - 1,
        "seconds a step without": statistics.mean(plain),
        "bytes an example": held / examples,
        "bytes dense": 4 * parameters,
        "largest difference of weights": max(
            float((one - other).detach().abs().max())
            for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True)
        ),
    }


def network(layers: int, width: int) -> GPT2LMHeadModel:
    """A GPT-2 from its configuration, without dropout so that both ways compute alike."""
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=WORDS,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(shape).train()


def batches(examples: int) -> Iterator[list[int]]:
    """Positions, a batch at a time, in a random order."""
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(1))
    for chosen in order.split(BATCH):
        yield chosen.tolist()


def report(results: Results, cells: dict[str, dict[str, Any]]) -> None:
    """Print the table and draw it."""
    print("| log | time of a step more than without | bytes an example | share of a dense gradient |")
    print("| --- " * 4 + "|")
    for name, cell in cells.items():
        share = cell["bytes an example"] / cell["bytes dense"]
        print(f"| {name} | {cell['overhead']:+.1%} | {cell['bytes an example']:,.0f} | {share:.1%} |")
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    panel = figure.subplots()
    panel.barh(list(cells), [100 * cell["overhead"] for cell in cells.values()])
    panel.invert_yaxis()
    panel.set_xlabel("time of a step more than without a log, %")
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
