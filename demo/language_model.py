"""A language model with a large vocabulary, trained with one loss after another."""

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import torchce_cuda
from demo.meter import Cost, ProcessPeak, Span
from demo.transformer import Transformer

TOLERANCE = 1e-3  # of the loss, at any step


@dataclass(frozen=True)
class Setup:
    vocab_size: int = 32768
    context: int = 128
    batch: int = 8
    steps: int = 60
    held_out_tokens: int = 8192
    width: int = 128
    heads: int = 4
    layers: int = 2
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What one training gave, and what its steps cost."""

    name: str
    losses: list[float]
    held_out_loss: float
    loss: Cost | None  # forward and backward, from the logits on; None where there are none
    head: Cost  # the same from the hidden states on: with the output layer's matrix products
    step: Cost  # all of it: the whole step, the whole process


Loss = Callable[[Tensor, Tensor, Tensor, Span], Tensor]


def of_logits(cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The usual way: make all the logits, then take their loss."""

    def loss(hidden: Tensor, weight: Tensor, target: Tensor, span: Span) -> Tensor:
        logits = hidden @ weight.T
        span.watch(logits)
        return cross_entropy(logits, target)

    return loss


def of_hidden_states(hidden: Tensor, weight: Tensor, target: Tensor, _: Span) -> Tensor:
    """The output layer is a part of the loss: there are no logits for the span to watch."""
    return torchce_cuda.linear_cross_entropy(hidden, weight, target)


LOSSES: dict[str, Loss] = {  # the first is the one that the others are compared with
    "F.cross_entropy": of_logits(F.cross_entropy),
    "torchce_cuda": of_logits(torchce_cuda.cross_entropy),
    "torchce_cuda, in place": of_logits(
        functools.partial(torchce_cuda.cross_entropy, inplace=True)
    ),
    "torchce_cuda, linear": of_hidden_states,
}


def train_with_each_loss(tokens: np.ndarray, setup: Setup) -> list[Run]:
    """Each in a process of its own, so that none inherits what another left in memory; they take
    their steps in turn, so that whatever slows the machine down slows them alike."""
    spawn = multiprocessing.get_context("spawn")
    pipes = []
    for name in LOSSES:
        pipe, far_end = spawn.Pipe()
        spawn.Process(target=train, args=(far_end, tokens, setup, name), daemon=True).start()
        far_end.close()  # now the process alone has it, and if it dies receiving fails
        pipes.append(pipe)

    for _ in (progress := tqdm(range(setup.steps), "language model", unit="step")):
        losses = []
        for pipe in pipes:
            pipe.send("your turn")
            losses.append(pipe.recv())
        progress.set_postfix_str("losses " + " ".join(f"{loss:.4f}" for loss in losses))
    return [pipe.recv() for pipe in pipes]


def train(pipe: Connection, tokens: np.ndarray, setup: Setup, name: str) -> None:
    """Sends the loss of each step, and a `Run` in the end."""
    torch.manual_seed(setup.seed)
    model = Transformer(setup.vocab_size, setup.context, setup.width, setup.heads, setup.layers)
    optimizer = torch.optim.AdamW(model.parameters(), setup.learning_rate)
    split = len(tokens) - setup.held_out_tokens
    texts = draw_texts(tokens[:split], setup)
    loss_span, head_span, process = Span(), Span(), ProcessPeak()
    losses, step_seconds = [], []

    for _ in range(setup.steps):
        text = next(texts)
        pipe.recv()
        start = time.perf_counter()
        hidden = model(text[:, :-1])
        process.restart_mark()
        head_span.watch(hidden)
        loss = LOSSES[name](hidden, model.token.weight, text[:, 1:].flatten(), loss_span)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step_seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        pipe.send(losses[-1])
    process.restart_mark()

    held_out_loss = evaluate(model, tokens[split:], setup)
    step = Cost(min(step_seconds), process.bytes)
    pipe.send(Run(name, losses, held_out_loss, loss_span.cost(), head_span.cost(), step))


def draw_texts(tokens: np.ndarray, setup: Setup) -> Iterator[Tensor]:
    """Random pieces of the text, [batch, context + 1]: the last token of each is only predicted."""
    random = np.random.default_rng(setup.seed)
    piece = np.arange(setup.context + 1)
    while True:
        start = random.integers(len(tokens) - setup.context, size=(setup.batch, 1))
        yield torch.from_numpy(tokens[start + piece].astype(np.int64))


@torch.no_grad()
def evaluate(model: Transformer, tokens: np.ndarray, setup: Setup) -> float:
    """The mean loss of text that the training never saw, by the same judge for every run."""
    whole = len(tokens) // (setup.context + 1) * (setup.context + 1)
    pieces = torch.from_numpy(tokens[:whole].astype(np.int64)).view(-1, setup.context + 1)
    total = 0.0
    for text in pieces.split(setup.batch):
        logits = model(text[:, :-1]) @ model.token.weight.T
        total += F.cross_entropy(logits, text[:, 1:].flatten(), reduction="sum").item()
    return total / (len(pieces) * setup.context)


def differences(run: Run, reference: Run) -> np.ndarray:
    return np.abs(np.subtract(run.losses, reference.losses))


def check_agreement(runs: list[Run]) -> None:
    """Every curve within `TOLERANCE` of the first, at every step."""
    reference, *others = runs
    for run in others:
        apart = differences(run, reference)
        if not (apart <= TOLERANCE).all():  # so put, it refuses NaN too
            raise ValueError(
                f"the losses of {run.name} and {reference.name} differ by {apart.max():.2g} "
                f"after {apart.argmax()} steps; {TOLERANCE:g} is allowed"
            )
