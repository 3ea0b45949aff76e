"""The demo's parts, small: its text, its imbalance, and that its own check can fail."""

import inspect
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")
pytest.importorskip("tqdm")

from demo import corpus, digits, language_model, plots, table
from demo.language_model import Run, Setup
from demo.meter import Cost, ProcessPeak, Span, status_bytes

MIB = 2**20
LOSS_COST = Cost(seconds=0.004, bytes=8 * MIB)
HEAD_COST = Cost(seconds=0.010, bytes=16 * MIB)
SMALL = Setup(
    vocab_size=600, context=16, batch=2, steps=6, held_out_tokens=200, width=16, heads=2, layers=1
)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(corpus.read_documents(Path(json.__file__).parent))


@pytest.fixture(scope="module")
def tokens(documents) -> np.ndarray:
    return corpus.encode(corpus.train_tokenizer(documents, SMALL.vocab_size), documents)


def test_corpus_is_the_documentation_that_libraries_carry(documents):
    assert any(inspect.getdoc(json.JSONEncoder) in document for document in documents)
    assert not any("self.skipkeys = skipkeys" in document for document in documents)  # no code
    for name in corpus.LIBRARIES:
        assert next(corpus.read_documents(corpus.library_root(name)))


def test_tokenizer_has_the_vocabulary_asked_for_and_loses_nothing(documents):
    tokenizer = corpus.train_tokenizer(documents, SMALL.vocab_size)
    assert tokenizer.get_vocab_size() == SMALL.vocab_size
    text = documents[0] + " \u00e9\u4e16 never seen in training"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_refuses_a_text_that_is_too_small(documents):
    with pytest.raises(ValueError, match="100000 were asked for"):
        corpus.train_tokenizer(documents, 100_000)


def test_tokens_are_the_same_every_time(documents, tokens):
    again = corpus.encode(corpus.train_tokenizer(documents, SMALL.vocab_size), documents)
    np.testing.assert_array_equal(tokens, again)


def test_texts_are_the_same_for_every_loss_and_come_from_the_tokens(tokens):
    first, second = (next(language_model.draw_texts(tokens, SMALL)) for _ in range(2))
    assert torch.equal(first, second)
    stream = tokens.tobytes()
    assert all(text.int().numpy().tobytes() in stream for text in first)


def test_all_losses_train_alike(tokens):
    runs = language_model.train_with_each_loss(tokens, SMALL)
    assert [run.name for run in runs] == list(language_model.LOSSES)
    language_model.check_agreement(runs)
    assert runs[0].losses[0] == pytest.approx(np.log(SMALL.vocab_size), rel=0.1)
    assert runs[0].losses[-1] < runs[0].losses[0]
    assert [run.name for run in runs if run.loss is None] == ["torchce_cuda, linear"]
    assert all(run.head.seconds < run.step.seconds for run in runs)
    assert all(run.loss.seconds < run.head.seconds for run in runs if run.loss)


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("error", [2e-3, -2e-3, float("nan"), float("inf")])
def test_disagreement_is_found(step, error):
    curve = [9.0, 8.0, 7.5, 7.0, 6.5, 6.0]
    wrong = list(curve)
    wrong[step] += error
    with pytest.raises(ValueError, match=f"wrong and right differ .* after {step} steps"):
        language_model.check_agreement(
            [run_of("right", curve), run_of("also right", curve), run_of("wrong", wrong)]
        )


def test_rounding_is_no_disagreement():
    curve = np.linspace(9, 6, 50)
    noise = np.random.default_rng(0).uniform(-9e-4, 9e-4, 50)
    language_model.check_agreement(
        [run_of("a", curve.tolist()), run_of("b", (curve + noise).tolist())]
    )


def test_span_measures_the_memory_between_a_tensor_and_its_gradient():
    span, process = Span(), ProcessPeak()
    start = torch.ones((), requires_grad=True) * torch.ones(96 * MIB // 4).mean()
    process.restart_mark()  # the 96 MiB are gone, and none of the span's business
    resident = status_bytes("VmRSS")
    span.watch(start)
    (start * torch.ones(64 * MIB // 4)).sum().backward()  # never more than two of them at a time
    assert span.cost().bytes == pytest.approx(2 * 64 * MIB, abs=4 * MIB)
    process.restart_mark()
    assert process.bytes >= resident + span.cost().bytes


def test_span_that_watched_nothing_has_no_cost():
    assert Span().cost() is None


def test_table_has_a_column_for_a_loss_that_never_makes_its_logits():
    runs = [run_of("usual", [9.0, 8.0]), run_of("linear", [9.0, 8.0], loss=None)]
    _, _, loss, _, head, *_ = table.language_model_table(runs).splitlines()
    assert [cell.strip() for cell in loss.split("|")[2:4]] == ["4.0 ms (1.00 x)", "-"]
    assert [cell.strip() for cell in head.split("|")[2:4]] == ["10.0 ms (1.00 x)"] * 2


def test_plot_has_a_bar_for_a_loss_that_never_makes_its_logits(tmp_path):
    runs = [run_of("usual", [9.0, 8.0]), run_of("linear", [9.0, 8.0], loss=None)]
    with plots.plt.rc_context({"svg.fonttype": "none"}):  # text stays text, to be read here
        plots.plot_costs(runs, tmp_path / "cost.svg")
    elements = ElementTree.parse(tmp_path / "cost.svg").iter("{http://www.w3.org/2000/svg}text")
    shown = [element.text for element in elements]
    for label, count in {
        "4.0 ms (1.00 x)": 1,
        "8 MiB": 1,
        "-": 2,
        "10.0 ms (1.00 x)": 2,
        "16 MiB": 2,
    }.items():
        assert shown.count(label) == count


def test_digits_are_imbalanced_in_training_and_balanced_in_the_test():
    split = digits.imbalanced_split(seed=0)
    count = torch.bincount(split.labels)
    rare = list(digits.RARE)
    assert (count[rare] == digits.RARE_IMAGES).all()
    assert np.delete(count.numpy(), rare).min() > 20 * digits.RARE_IMAGES
    assert (torch.bincount(split.test_labels) == digits.TEST_IMAGES).all()
    assert split.test_labels.equal(
        split.test_labels.sort().values
    )  # which the accuracy per class relies on


def test_no_digit_is_in_training_and_test():
    split = digits.imbalanced_split(seed=0)
    images = torch.cat([split.images, split.test_images])
    assert len(images.unique(dim=0)) == len(images)


def test_class_weights_make_every_class_equal():
    labels = digits.imbalanced_split(seed=0).labels
    weight = digits.balanced_weight(labels)
    mass = torch.zeros(digits.CLASSES).index_add(0, labels, weight[labels])
    torch.testing.assert_close(mass, mass.mean().expand_as(mass))


@pytest.fixture
def one_thread():
    """As the demo does: two would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", digits.LOSSES)
def test_digits_are_learnt(name, one_thread):
    accuracy = digits.train(digits.LOSSES[name], seed=0)
    assert np.delete(accuracy, digits.RARE).mean() > 0.9


def run_of(name: str, losses: list[float], loss: Cost | None = LOSS_COST) -> Run:
    return Run(name, losses, losses[-1], loss, head=HEAD_COST, step=HEAD_COST)
