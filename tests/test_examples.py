"""The examples, small: their data, what they measure, and the pictures they draw."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")
pytest.importorskip("tqdm")

from demo.digits import CLASSES, RARE, TEST_IMAGES
from examples import digits, multi_label, why_cross_entropy

DOCSTRING = """Sort the rows of a matrix.

Parameters
----------
x, y : ndarray
    Rows.
    key : not a parameter, it is indented
*args : tuple
axis : int, optional

Returns
-------
sorted : ndarray
"""
LARGEST = 60_000  # bytes of a picture


def test_digits_counts_every_test_image_once(one_thread, tmp_path):
    confusion = digits.confusion_of_each_loss(seeds=1)
    assert list(confusion) == list(digits.LOSSES)
    for matrix in confusion.values():
        assert (matrix.sum(axis=1) == TEST_IMAGES).all()
        assert np.delete(matrix.diagonal(), RARE).mean() > 0.9 * TEST_IMAGES
    digits.plot(confusion, tmp_path / "confusion.png")
    _, _, first, *_ = digits.recall_table(confusion).splitlines()
    shown = float(first.split("|")[2].strip(" %"))
    assert shown == pytest.approx(100 * confusion["plain"][0, 0] / TEST_IMAGES, abs=0.05)
    assert digits.confusion_tables(confusion).count("true, predicted") == len(confusion)


def test_digits_weights_make_every_class_equal():
    labels = torch.arange(CLASSES).repeat_interleave(torch.arange(1, CLASSES + 1))
    mass = torch.zeros(CLASSES).index_add(0, labels, digits.balanced(labels)[labels])
    torch.testing.assert_close(mass, mass.mean().expand_as(mass))


def test_docstring_is_split_into_prose_and_parameters():
    prose, names = multi_label.split_docstring(DOCSTRING)
    assert prose.strip() == "Sort the rows of a matrix."
    assert names == {"x", "y", "args", "axis"}
    assert multi_label.split_docstring("Nothing but prose.") == ("Nothing but prose.", set())


def test_words_have_the_same_bucket_everywhere():
    words = multi_label.hashed_words("The axis, the AXIS")
    assert len(words) == multi_label.WORDS
    assert words[0] == words[2] and words[1] == words[3] != words[0]
    assert words[4:] == [0] * (multi_label.WORDS - 4) and min(words[:4]) > 0
    assert words[1] == 1 + 0x850F86FA % (multi_label.BUCKETS - 1)


@pytest.mark.parametrize("name", multi_label.LOSSES)
def test_labels_are_learnt(name, one_thread):
    """Documents that say the names of their labels."""
    vocabulary = [f"word{i}" for i in range(8)]
    random = np.random.default_rng(0)
    documents = [("this one alone", {"rare"})]
    for row in range(400):
        said = [word for word in vocabulary if random.random() < 0.3]
        documents.append((" ".join([f"text{row}", *said]), set(said)))
    data = multi_label.make_dataset(iter(documents), least=5)
    assert set(data.names) == set(vocabulary)
    count = data.labels.sum(dim=0)
    assert count.equal(count.sort(descending=True).values)
    scores = multi_label.train_and_test(data, multi_label.LOSSES[name], seed=0, epochs=40)
    assert scores.average_precision.min() > 0.9
    assert scores.f1.mean() > 0.5


def test_label_that_the_test_lacks_has_no_precision(tmp_path):
    truth = np.array([[1, 0], [0, 0]])
    precision = multi_label.average_precision_per_label(truth, np.array([[0.9, 0.5], [0.1, 0.5]]))
    np.testing.assert_array_equal(precision, [1, np.nan])
    runs = [multi_label.Scores(each, each, 0.5) for each in (precision[[0, 1, 0]], np.ones(3))]
    scores = {"one": runs, "other": runs}
    table = multi_label.score_table(scores, frequent=np.array([True, False, False]))
    assert table.count("1.000 ± 0.000") == 6  # precision of both kinds, F1 of the frequent
    multi_label.plot(scores, np.array([200, 20, 20]), tmp_path / "scores.png")


def test_pictures_are_small_and_the_same_every_time(tmp_path):
    for folder in ("once", "again"):
        why_cross_entropy.main(tmp_path / folder)
    once = sorted((tmp_path / "once").iterdir())
    assert [path.stem for path in once] == sorted(why_cross_entropy.pictures())
    for path in once:
        assert path.stat().st_size < LARGEST, path.name
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_pictures_of_the_guide_are_those_of_the_program():
    committed = {path.stem for path in why_cross_entropy.PICTURES.glob("*.png")}
    assert committed == set(why_cross_entropy.pictures())


def test_curves_are_what_the_literature_says():
    p = why_cross_entropy.PROBABILITY
    loss, gradient = why_cross_entropy.nll()["cross entropy"]
    torch.testing.assert_close(loss, -p.log())
    torch.testing.assert_close(gradient, p - 1)
    for name, (loss, gradient) in why_cross_entropy.gamma().items():
        g = float(name.removeprefix("γ = "))
        torch.testing.assert_close(loss, (1 - p) ** g * -p.log())
        # Lin et al., appendix A: of a positive label, and the same for softmax's target.
        torch.testing.assert_close(gradient, (1 - p) ** g * (g * p * p.log() + p - 1))
    for name, (loss, gradient) in why_cross_entropy.smoothing().items():
        e = float(name.removeprefix("ε = "))
        best = 1 - e + e / why_cross_entropy.CLASSES
        assert p[loss.argmin()].item() == pytest.approx(min(best, p[-1].item()), abs=1e-3)
        torch.testing.assert_close(gradient, p - best)


def test_class_weight_is_the_slope():
    curves = why_cross_entropy.weight()
    plain_loss, plain_gradient = curves["w = 1"]
    for name, (loss, gradient) in curves.items():
        w = float(name.removeprefix("w = "))
        torch.testing.assert_close(loss, w * plain_loss)
        torch.testing.assert_close(gradient, w * plain_gradient)
        assert gradient[0].item() == pytest.approx(-w, rel=0.01)


def test_alpha_of_a_one_is_one_minus_alpha_of_a_zero():
    curves = why_cross_entropy.alpha()
    for a, other in ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25)):
        one, zero = curves[f"label 1, α = {a:g}"], curves[f"label 0, α = {other:g}"]
        torch.testing.assert_close(one[0], zero[0].flip(0))
        torch.testing.assert_close(one[1], -zero[1].flip(0))


def test_only_z_loss_notices_that_all_logits_moved():
    for name, (loss, gradient) in why_cross_entropy.z_loss().items():
        z = float(name.removeprefix("z_loss = "))
        lse = why_cross_entropy.LOGIT + np.log(why_cross_entropy.CLASSES)
        torch.testing.assert_close(loss, np.log(why_cross_entropy.CLASSES) + z * lse**2)
        torch.testing.assert_close(gradient, 2 * z * lse)
