"""Hidden states, head and targets of a model that was trained on real text.

Most of its probabilities are next to 0 and some classes are far more frequent than others, which
random numbers do not show and some kernels gain by. It is the demo's model, trained where it is
measured: once, and then kept in a folder that builds write to.
"""

import random
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.environment import ROOT
from bench.shapes import TRAINED_CLASSES, Shape

FOLDER = ROOT / "build" / "trained"
MOST_ROWS = 16384  # held-out tokens whose hidden states are kept


@dataclass(frozen=True)
class Training:
    width: int
    batch: int
    steps: int

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.width}-features-{self.steps}-steps.pt"


# On two cores a minute, on a GPU half of one: to read the text takes most of it.
TRAININGS = {"cpu": Training(128, 8, 100), "cuda": Training(768, 32, 1000)}


def draw(
    shape: Shape, dtype: torch.dtype, device: str
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Inputs and target of a problem; raises ImportError where the model cannot be trained."""
    training = TRAININGS[device]
    if not training.path.exists():
        keep(train(training, device), training.path)
    kept = torch.load(training.path, map_location=device)
    hidden, head, target = kept["hidden"][: shape.rows], kept["head"], kept["target"][: shape.rows]
    inputs = (hidden, head) if len(shape.inputs) == 2 else (hidden @ head.T,)
    return tuple(each.to(dtype) for each in inputs), target


def keep(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # a run that is stopped here leaves nothing half done
    torch.save(tensors, partial)
    partial.replace(path)


def train(training: Training, device: str) -> dict[str, torch.Tensor]:
    """Train the model and return what it makes of text that it has not seen."""
    from demo import corpus
    from demo.language_model import Setup, draw_texts
    from demo.transformer import Transformer

    print(f"training a model for {training.steps} steps", file=sys.stderr)
    setup = Setup(
        vocab_size=TRAINED_CLASSES,
        batch=training.batch,
        width=training.width,
        held_out_tokens=MOST_ROWS + MOST_ROWS // Setup.context,  # the first of each is only read
    )
    # Whoever runs this has these two.
    roots = (corpus.STANDARD_LIBRARY, corpus.library_root("torch"))
    documents = [document for root in roots for document in corpus.read_documents(root)]
    random.Random(setup.seed).shuffle(documents)
    tokens = corpus.encode(corpus.train_tokenizer(documents, TRAINED_CLASSES), documents)
    split = len(tokens) - setup.held_out_tokens

    torch.manual_seed(setup.seed)
    model = Transformer(setup.vocab_size, setup.context, setup.width, setup.heads, setup.layers).to(
        device
    )
    optimizer = torch.optim.AdamW(model.parameters(), setup.learning_rate)
    for text in islice(draw_texts(tokens[:split], setup), training.steps):
        text = text.to(device)
        logits = model(text[:, :-1]) @ model.token.weight.T
        F.cross_entropy(logits, text[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    held_out = torch.from_numpy(tokens[split:]).long().view(-1, setup.context + 1).to(device)
    target = held_out[:, 1:].flatten()
    with torch.no_grad():
        pieces = held_out[:, :-1].split(setup.batch)
        hidden = torch.cat([model(piece) for piece in pieces])
        losses = [
            F.cross_entropy(rows @ model.token.weight.T, expected)
            for rows, expected in zip(hidden.split(1024), target.split(1024), strict=True)
        ]
    held_out_loss = sum(losses) / len(losses)
    print(f"its loss on text that it has not seen: {held_out_loss:.2f}", file=sys.stderr)
    return {"hidden": hidden, "head": model.token.weight.detach(), "target": target}
