"""The other kernels without a GPU: what doubles of them are asked for, and how wheels travel."""

import dataclasses
import math
import os
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from peer_doubles import install

import demo
from bench import check, gpu_peers, gpu_report, providers, results, run, trained
from bench.__main__ import parser
from bench.cases import OPTIONS, PLAIN
from bench.linear import providers as linear
from bench.linear.cases import SHAPES as LINEAR_SHAPES
from bench.linear.cases import WORK, LinearShape
from bench.linear.check import LinearExpected
from bench.problem import Problem
from bench.providers import OURS, PROVIDERS, Provider
from bench.shapes import SHAPES, Shape
from bench.sigmoid.cases import OPTIONS as SIGMOID_OPTIONS
from bench.sigmoid.cases import SigmoidShape
from bench.sigmoid.check import SigmoidExpected
from bench.sigmoid.providers import PROVIDERS as SIGMOID_PROVIDERS
from bench.sigmoid.providers import of_indices
from bench.subjects import SUBJECTS

ROWS = Shape("rows", (6, 16), "what every kernel can be given")
IMAGE = Shape("image", (6, 5, 3), "classes in the middle, and not a multiple of 8 of them")
BOXES = SigmoidShape("boxes", (40, 8), "more rows than classes: some of the background")
HEAD = LinearShape("head", (6, 8, 16), "")


def checked(provider, problem, work, option, expected):
    contender = run.Contender(work, option, provider)
    run.check(contender, problem, expected(problem, option))
    return contender


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
@pytest.mark.parametrize("work", ["forward", "one_pass"])
def test_peers_are_asked_for_the_loss_that_is_meant(monkeypatch, work, option):
    install(monkeypatch)
    problem = Problem(ROWS, torch.float32)
    for name, provider in PROVIDERS.items():
        if not provider.supports(option, work) or name.startswith("torch.compile"):
            continue
        contender = checked(provider, problem, work, option, check.Expected)
        assert contender.status == results.OK, f"{name}: {contender.detail}"


def test_every_peer_is_asked_for_some_loss():
    kernels = {name for name in PROVIDERS if not name.startswith(("torch.compile", "F.", OURS))}
    assert len(kernels) == 10
    for name in kernels:
        assert any(
            PROVIDERS[name].supports(option, work)
            for option in OPTIONS.values()
            for work in ("forward", "one_pass")
        )


@pytest.mark.parametrize("option", SIGMOID_OPTIONS.values(), ids=lambda option: option.name)
def test_peers_are_asked_for_the_sigmoid_loss_that_is_meant(monkeypatch, option):
    install(monkeypatch)
    problem = Problem(BOXES, torch.float32)
    assert (problem.target.sum(1) == 0).any()
    for provider in SIGMOID_PROVIDERS.values():
        if provider.supports(option, "forward_backward") and "compile" not in provider.name:
            contender = checked(provider, problem, "forward_backward", option, SigmoidExpected)
            assert contender.status == results.OK, f"{provider.name}: {contender.detail}"


def test_the_index_of_the_class_is_found_once_for_each_tensor():
    given = []
    loss = of_indices(lambda logits, index: given.append(index))
    target = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    loss(None, target)
    loss(None, target)
    loss(None, target.clone())
    assert given[0].tolist() == [1, 2, 0]
    assert given[1] is given[0]
    assert given[2] is not given[0]


# Compiling takes long, and is tested where ours is compared with it.
HEAD_PEERS = [
    name for name in linear.PROVIDERS if not name.startswith(("torch.compile", linear.TORCH_LINEAR))
]


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)], ids=str)
@pytest.mark.parametrize("name", HEAD_PEERS)
def test_peers_are_asked_for_the_loss_of_a_head(monkeypatch, name, capability):
    install(monkeypatch, capability)
    problem = Problem(HEAD, torch.bfloat16)
    contender = checked(linear.PROVIDERS[name], problem, WORK, OPTIONS[PLAIN], LinearExpected)
    assert contender.status == results.OK, contender.detail


def test_only_the_exact_form_of_a_peer_leaves_out_no_gradient(monkeypatch):
    install(monkeypatch)
    many_classes = LinearShape("classes", (64, 8, 512), "most gradients are small")
    problem = Problem(many_classes, torch.float32)
    statuses = {
        name: checked(linear.PROVIDERS[name], problem, WORK, OPTIONS[PLAIN], LinearExpected).status
        for name in (linear.CUT, linear.CUT_EXACT)
    }
    assert statuses == {linear.CUT: results.WRONG, linear.CUT_EXACT: results.OK}


@pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="needs torch 2.13 or later"
)
def test_the_head_of_pytorch_is_called_with_each_policy(monkeypatch):
    policies = []
    monkeypatch.setattr(
        F, "linear_cross_entropy", lambda *args, options: policies.append(options.acc_policy)
    )
    for name, provider in linear.PROVIDERS.items():
        if name.startswith(linear.TORCH_LINEAR):
            provider.load(WORK)()
    assert policies == ["auto", "accurate", "balanced", "compact"]


def test_the_loss_of_float_is_that_of_the_rounded_logits():
    logits, target = torch.randn(4, 8).bfloat16(), torch.tensor([0, 1, 2, 3])
    loss = PROVIDERS[providers.TORCH_FLOAT].load("forward")(logits, target)
    assert loss.dtype == torch.float32
    assert loss == F.cross_entropy(logits.float(), target)


def test_what_is_tuned_captures_no_graph_of_its_own(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda loss, **how: modes.append(how["mode"]))
    for table in (PROVIDERS, linear.PROVIDERS):
        table[providers.AUTOTUNED].load(WORK)
    assert modes == ["max-autotune-no-cudagraphs"] * 2


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "expected"),
    [
        (providers.QUACK, IMAGE, "float32", {"positions"}),
        (providers.LIGER_CUTE, IMAGE, "float32", {"positions", "odd rows"}),
        (providers.MMCV, ROWS, "bfloat16", {"bfloat16"}),
        (providers.TORCH_FLOAT, ROWS, "float32", {"float32"}),
        (providers.FLAG_GEMS, IMAGE, "float16", set()),
        (OURS, IMAGE, "bfloat16", set()),
    ],
)
def test_what_cannot_be_given_to_a_provider(name, shape, dtype, expected):
    assert PROVIDERS[name].obstacles(shape, dtype) == expected


def test_who_cannot_be_given_a_problem_is_named_and_not_called(capsys):
    def load(work):
        raise AssertionError

    unable = Provider("unable", load, lacks=frozenset({"positions"}))
    assert run.able(Problem(IMAGE, torch.float32), [unable, PROVIDERS[OURS]]) == [PROVIDERS[OURS]]
    assert "without unable: not for positions" in capsys.readouterr().err


def test_a_focal_kernel_is_not_asked_for_the_plain_loss():
    supports = PROVIDERS[providers.MMCV].supports
    assert not supports(OPTIONS[PLAIN], "forward")
    assert supports(OPTIONS["weight+focal"], "forward")
    assert not supports(OPTIONS["focal+smoothing"], "forward")


def plan(subject="logits", device="cpu", names=None):
    return run.Plan(SUBJECTS[subject], device, [], None, [], None, names, None, False, 1, None)


def test_who_is_left_out_is_named_with_the_reason_and_still_can_be_named(capsys):
    autotuned = PROVIDERS[providers.AUTOTUNED]
    assert autotuned not in plan().wanted_providers()
    assert f"left out {autotuned.name}: its code there is that" in capsys.readouterr().err
    assert autotuned in plan(device="cuda").wanted_providers()
    assert plan(names=[autotuned.name]).wanted_providers() == [autotuned]


def test_whatever_goes_wrong_in_an_import_is_a_reason_to_skip(capsys):
    def load(work):
        raise RuntimeError("0 active drivers\nand a long trace")

    assert run.available_providers([Provider("broken", load)]) == []
    assert "skipped broken: RuntimeError: 0 active drivers\n" in capsys.readouterr().err


def test_who_overwrites_its_inputs_is_wrong_and_they_are_made_anew():
    def overwrite(logits, target):
        loss = F.cross_entropy(logits, target)
        logits.data.mul_(2)
        return loss

    problem = Problem(ROWS, torch.float32)
    original = problem.logits.clone()
    planted = Provider("planted", lambda work: overwrite)
    contender = checked(planted, problem, "forward", OPTIONS[PLAIN], check.Expected)
    assert (contender.status, contender.detail) == (results.WRONG, "it overwrote its inputs")
    assert torch.equal(problem.logits, original)
    # What a layer made may be overwritten.
    contender = checked(planted, problem, "one_pass", OPTIONS[PLAIN], check.Expected)
    assert contender.detail != "it overwrote its inputs"


@pytest.fixture
def tiny_model(monkeypatch, tmp_path):
    """A model that takes no time to train; returns how often it was."""
    trainings = []

    def train(training, device):
        trainings.append(training)
        generator = torch.Generator().manual_seed(0)
        return {
            "hidden": torch.randn(12, 4, generator=generator),
            "head": torch.randn(9, 4, generator=generator),
            "target": torch.arange(12) % 9,
        }

    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    monkeypatch.setattr(trained, "train", train)
    return trainings


def test_a_trained_model_gives_hidden_states_and_their_logits(tiny_model):
    head = Problem(LinearShape("trained", (6, 4, 9), "", trained=True), torch.float64)
    logits = Problem(Shape("trained", (6, 9), "", trained=True), torch.float64)
    hidden, weight = head.inputs
    assert (hidden.shape, weight.shape, hidden.dtype) == ((6, 4), (9, 4), torch.float64)
    torch.testing.assert_close(logits.logits, hidden @ weight.T, atol=1e-6, rtol=1e-6)
    assert head.target.tolist() == logits.target.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(tiny_model) == 1  # kept


def test_a_model_is_trained_to_say_what_follows(monkeypatch):
    corpus = pytest.importorskip("demo.corpus", reason="needs what the demo needs")
    text = " ".join(str(number * number % 997) for number in range(6000))
    monkeypatch.setattr(corpus, "read_documents", lambda root: [text])
    monkeypatch.setattr(trained, "TRAINED_CLASSES", 300)
    monkeypatch.setattr(trained, "MOST_ROWS", 256)
    made = trained.train(trained.Training(width=16, batch=4, steps=60), "cpu")
    hidden, head, target = made["hidden"], made["head"], made["target"]
    assert (hidden.shape, head.shape, target.shape) == ((256, 16), (300, 16), (256,))
    assert not hidden.requires_grad
    assert not head.requires_grad
    loss, uniform = F.cross_entropy(hidden @ head.T, target), math.log(300)
    assert loss < 0.8 * uniform


def test_shapes_of_a_trained_model_have_its_size_and_say_so_in_their_names():
    for shapes in (SHAPES, LINEAR_SHAPES):
        found = [shape for shape in shapes.values() if shape.trained]
        assert {device for shape in found for device in shape.devices} == {"cpu", "cuda"}
        for shape in found:
            assert shape.name.startswith("trained")
            assert shape.rows <= trained.MOST_ROWS
            assert shape.cols == trained.TRAINED_CLASSES
    for shape in (shape for shape in LINEAR_SHAPES.values() if shape.trained):
        assert shape.size[1] == trained.TRAININGS[shape.devices[0]].width


def test_without_a_tokenizer_a_trained_model_is_skipped_with_the_reason(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "demo.corpus", raising=False)
    monkeypatch.delattr(demo, "corpus", raising=False)
    measuring = dataclasses.replace(
        plan(names=[OURS]), shapes=[SHAPES["trained"]], csv=tmp_path / "results.csv"
    )
    run.run(measuring)
    said = capsys.readouterr().err
    assert "skipped trained: import of tokenizers halted" in said
    assert not (tmp_path / "results.csv").exists()


def test_parts_are_small_enough_and_miss_nothing_else():
    sizes = {"a": 50, "b": 30, "c": 30, "d": 10, "e": 61, "f": 60}
    parts, too_large = gpu_peers.partition(sizes, 60)
    assert too_large == ["e"]
    assert parts == [["f"], ["a", "d"], ["b", "c"]]
    assert gpu_peers.partition({}, 60) == ([], [])


@pytest.fixture
def registry(monkeypatch):
    """A registry with two wheels, one of them large; returns the commands that ask it."""
    commands = []

    def pip(command, **rest):
        commands.append(command)
        *_, folder, requirement = command
        size = {"liger-kernel": 10, "nvidia-cutlass-dsl-libs-cu13": 150}.get(requirement)
        if size is None:
            stderr = f"WARNING: a\nERROR: no versions\nERROR: No {requirement}\n"
            return subprocess.CompletedProcess(command, 1, stderr=stderr)
        (folder / f"{requirement}.whl").write_bytes(bytes(range(size)))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(gpu_peers.subprocess, "run", pip)
    monkeypatch.setattr(gpu_peers, "MOST_BYTES", 100)
    return commands


def found_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fetch(monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_peers", "--out", str(folder), *arguments])
    assert gpu_peers.main() == 0


def test_wheels_are_for_the_other_machine_and_what_is_missing_is_named(
    monkeypatch, tmp_path, registry, capsys
):
    (tmp_path / "part-7").mkdir()  # of an earlier run
    fetch(monkeypatch, tmp_path)
    assert found_below(tmp_path) == {"part-1/liger-kernel.whl"}
    assert not (tmp_path / "part-7").exists()
    said = capsys.readouterr().out
    assert "left out: nvidia-cutlass-dsl-libs-cu13.whl: 0 MiB" in said
    assert "not to be had: mmcv: No mmcv\n" in said
    assert [command[-1] for command in registry] == list(gpu_peers.WANTED)
    for command in registry:
        assert {"--no-deps", "--only-binary=:all:", "3.12", "manylinux_2_28_x86_64"} <= set(command)


def test_a_large_wheel_may_travel_in_pieces(monkeypatch, tmp_path, registry):
    fetch(monkeypatch, tmp_path / "peers", "--cut")
    assert found_below(tmp_path / "peers") == {
        "part-1/nvidia-cutlass-dsl-libs-cu13.whl.0",
        "part-2/liger-kernel.whl",
        "part-2/nvidia-cutlass-dsl-libs-cu13.whl.1",
    }
    (whole,) = gpu_peers.joined(tmp_path / "peers", tmp_path)
    assert whole.name == "nvidia-cutlass-dsl-libs-cu13.whl"
    assert whole.read_bytes() == bytes(range(150))


def write_wheel(folder, name, files):
    """A wheel with nothing but these files."""
    information = f"{name}-1.0.dist-info"
    files = files | {
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{information}/RECORD"] = "".join(f"{path},,\n" for path in files)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_wheels_are_installed_in_a_folder_of_their_own(tmp_path):
    write_wheel(tmp_path / "peers" / "part-1", "first", {"shared/one.py": "x = 1\n"})
    second = write_wheel(
        tmp_path / "peers" / "part-2",
        "second",
        {"shared/inner/two.py": "y = 2\n", "second.pth": "shared/inner\n"},
    )
    gpu_peers.cut(second, 300)
    assert not second.exists()
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "old.py").touch()
    path = gpu_peers.search_path(tmp_path / "peers", tmp_path / "installed")
    code = "import shared.one, two; print(shared.one.x + two.y)"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "3\n", finished.stderr
    assert not (tmp_path / "installed" / "old.py").exists()


def test_unpacked_packages_are_taken_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "before")
    assert gpu_peers.search_path(tmp_path, tmp_path / "no").split(os.pathsep) == [
        str(tmp_path),
        "before",
    ]
    assert not (tmp_path / "no").exists()


def test_wheels_that_do_not_fit_this_python_end_the_report(tmp_path):
    (tmp_path / "x-1.0-cp27-cp27m-win32.whl").write_bytes(b"")
    with pytest.raises(SystemExit, match="no peers: x-1.0-cp27-cp27m-win32.whl is not a supported"):
        gpu_peers.search_path(tmp_path, tmp_path / "installed")


def test_a_report_finds_the_peers_and_runs_the_sections_chosen(monkeypatch, tmp_path):
    found = []
    section = gpu_report.Section
    monkeypatch.setenv("PYTHONPATH", "")
    planned = [
        section("build", [sys.executable, "-c", "pass"], 9, essential=True),
        section("first", [sys.executable, "-c", "pass"], 9),
        section("with peers", [sys.executable, "-c", "import peer; print(peer.__file__)"], 9),
    ]
    monkeypatch.setattr(gpu_report, "plan", lambda *_: planned)
    monkeypatch.setattr(gpu_report.sections, "announce", found.append)
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "peer.py").touch()
    arguments = parser().parse_args(
        f"gpu-report --device cpu --out {tmp_path}/out --peers {tmp_path}/peers --sections".split()
        + ["with peers"]
    )
    assert arguments.command(arguments) == 0
    assert [outcome.name for outcome in found] == ["build", "with peers"]
    assert found[1].tail == str(tmp_path / "peers" / "peer.py")


def test_a_section_that_does_not_exist_is_refused(tmp_path, capsys):
    assert gpu_report.run(tmp_path / "out", 9.0, "cpu", chosen=["tests", "test"]) == 1
    assert "no section test. There are: build; smoke test; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
