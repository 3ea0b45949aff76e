"""Trains a language model and a digit classifier, prints tables, saves them and plots to `out/`."""

import time
from pathlib import Path

import torch

from demo import corpus, digits, language_model, plots, table

OUT = Path("out")


def main() -> None:
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)

    setup = language_model.Setup()
    documents = corpus.read_libraries()
    tokenizer = corpus.train_tokenizer(documents, setup.vocab_size)
    tokens = corpus.encode(tokenizer, documents)
    print(
        f"{len(documents)} documents, {sum(map(len, documents)):,} characters, "
        f"{len(tokens):,} tokens of a vocabulary of {setup.vocab_size:,}"
    )
    runs = language_model.train_with_each_loss(tokens, setup)
    torch.set_num_threads(1)  # the digits are too small to share
    accuracy = digits.accuracy_per_class()

    plots.plot_loss_curves(runs, OUT / "loss_curves.png")
    plots.plot_costs(runs, OUT / "loss_cost.png")
    plots.plot_digits(accuracy, OUT / "digits.png")
    report = f"""\
Language model: {setup.batch * setup.context} x {setup.vocab_size} logits, {setup.steps} steps;
time of the fastest, memory of the largest

{table.language_model_table(runs)}

Digits: {digits.RARE_IMAGES} training images of a rare one, mean of {digits.SEEDS} runs

{table.digits_table(accuracy)}
"""
    (OUT / "tables.md").write_text(report)
    print(
        f"\n{report}\nTables and plots are in {OUT}/. {time.perf_counter() - start:.0f} s in all."
    )

    language_model.check_agreement(runs)  # last, so that a disagreement can be looked at


if __name__ == "__main__":  # the trainings' own processes import this file too
    main()
