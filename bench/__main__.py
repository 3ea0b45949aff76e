"""The command line: most commands measure, `report` renders, `gpu-report` is all of it on a GPU."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bench import gpu_report, report
from bench.cases import MODES, OPTIONS, WORKS, WORKS_OF_DEVICE
from bench.environment import ROOT
from bench.linear import cases as linear
from bench.linear.providers import PROVIDERS as LINEAR_PROVIDERS
from bench.providers import PROVIDERS, Provider
from bench.scaling import cases as scaling
from bench.shapes import SEGMENTATION, SHAPES, Shape
from bench.sigmoid import cases as sigmoid
from bench.sigmoid.providers import PROVIDERS as SIGMOID_PROVIDERS
from bench.small import cases as small
from bench.small.providers import PROVIDERS as SMALL_PROVIDERS
from bench.training import cases as training
from bench.training.providers import PROVIDERS as TRAINING_PROVIDERS


def main() -> int:
    arguments = parser().parse_args()
    return arguments.command(arguments)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(required=True)

    logits = commands.add_parser("logits", help="measure the loss of given logits")
    add_measuring(logits, "logits", SHAPES, PROVIDERS)
    add_works_and_options(logits)
    segmentation = commands.add_parser(
        "segmentation", help="those of `logits` that are images or volumes: classes in the middle"
    )
    add_measuring(segmentation, "logits", SEGMENTATION, PROVIDERS)
    add_works_and_options(segmentation)
    segmentation.set_defaults(shapes=list(SEGMENTATION))

    head = commands.add_parser("linear", help="measure the loss of hidden states and a head")
    add_measuring(head, "linear", linear.SHAPES, LINEAR_PROVIDERS)

    labels = commands.add_parser(
        "sigmoid", help="measure losses of labels that do not exclude each other"
    )
    add_measuring(labels, "sigmoid", sigmoid.SHAPES, SIGMOID_PROVIDERS)
    labels.add_argument("--works", nargs="+", choices=sigmoid.WORKS["cuda"])
    labels.add_argument("--options", nargs="+", choices=sigmoid.OPTIONS)

    calls = commands.add_parser("small", help="measure calls that take less than what leads there")
    add_measuring(calls, "small", small.SHAPES, SMALL_PROVIDERS)
    calls.add_argument("--works", nargs="+", choices=MODES)
    calls.set_defaults(no_memory=True)

    growth = commands.add_parser("scaling", help="measure time against rows and classes")
    add_measuring(growth, "scaling", scaling.LOGITS_SHAPES, PROVIDERS)
    growth.set_defaults(no_memory=True)
    head_growth = commands.add_parser(
        "linear-scaling", help="measure time and memory of `linear` against rows"
    )
    add_measuring(head_growth, "linear-scaling", scaling.LINEAR_SHAPES, LINEAR_PROVIDERS)

    steps = commands.add_parser("training", help="measure whole training steps")
    add_measuring(steps, "training", training.SHAPES, TRAINING_PROVIDERS)

    render = commands.add_parser("report", help="write tables and plots from the committed results")
    render.set_defaults(command=render_report)
    render.add_argument(
        "--check", action="store_true", help="write nothing, fail if anything is stale"
    )
    render.add_argument(
        "--from", dest="folder", type=Path, help="adopt the results of a GPU report first"
    )
    render.add_argument(
        "--plots-of", type=Path, metavar="CSV", help="only draw those of `logits`, beside it"
    )
    render.add_argument("--plots", nargs="+", choices=report.LOGITS.plots, help="which of them")

    on_gpu = commands.add_parser("gpu-report", help="build, check and measure on the GPU at hand")
    on_gpu.set_defaults(command=report_on_gpu)
    on_gpu.add_argument("--out", type=Path, required=True, help="folder of the results")
    on_gpu.add_argument("--minutes", type=float, default=9.0, help="at most, everything together")
    on_gpu.add_argument(
        "--device", choices=WORKS_OF_DEVICE, default="cuda", help="cpu: a rehearsal, tiny shapes"
    )
    on_gpu.add_argument(
        "--peers", type=Path, metavar="DIR", help="packages of other kernels: wheels, or unpacked"
    )
    on_gpu.add_argument(
        "--sections", nargs="+", metavar="NAME", help="only these, and what they need"
    )
    return top


def add_measuring(
    parser: argparse.ArgumentParser,
    subject: str,
    shapes: Mapping[str, Shape],
    providers: Mapping[str, Provider],
) -> None:
    """The options that every measuring command has."""
    parser.set_defaults(command=measure, subject=subject, works=None, options=None)
    parser.add_argument("--device", choices=WORKS_OF_DEVICE, default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shapes", nargs="+", choices=shapes, metavar="NAME")
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16", "float16", "float64"]
    )
    parser.add_argument("--providers", nargs="+", choices=providers, metavar="NAME")
    parser.add_argument("--minutes", type=float, help="begin no shape after this long")
    parser.add_argument("--csv", type=Path, help="default: a file of this machine in bench/results")
    parser.add_argument("--no-memory", action="store_true", help="time only")


def add_works_and_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--works", nargs="+", choices=WORKS)
    parser.add_argument("--options", nargs="+", choices=OPTIONS)


def measure(arguments: argparse.Namespace) -> int:
    from bench.run import Plan, run  # late: `gpu-report` begins before there is a build
    from bench.subjects import SUBJECTS

    device, subject = arguments.device, SUBJECTS[arguments.subject]
    shapes = subject.shapes.values()
    plan = Plan(
        subject=subject,
        device=device,
        shapes=[subject.shapes[name] for name in arguments.shapes]
        if arguments.shapes
        else [shape for shape in shapes if device in shape.devices],
        dtypes=arguments.dtypes,
        works=arguments.works or subject.works[device],
        options=arguments.options,
        providers=arguments.providers,
        minutes=arguments.minutes,
        weigh=not arguments.no_memory,
        threads=arguments.threads,
        csv=arguments.csv,
    )
    print(f"results in {run(plan)}", file=sys.stderr)
    return 0


def render_report(arguments: argparse.Namespace) -> int:
    if arguments.plots_of:
        run = report.LOGITS.read(arguments.plots_of)
        drawn = report.draw(replace(run, plot_names=arguments.plots or run.plot_names))
        print(f"drawn: {len(drawn)}")
        return 0
    if arguments.folder:
        for path in report.adopt(arguments.folder, ROOT):
            print(f"adopted: {path.relative_to(ROOT)}", file=sys.stderr)
    stale = report.stale(ROOT) if arguments.check else report.write(ROOT)
    for path in stale:
        print(
            f"{'stale' if arguments.check else 'written'}: {path.relative_to(ROOT)}",
            file=sys.stderr,
        )
    return 1 if arguments.check and stale else 0


def report_on_gpu(arguments: argparse.Namespace) -> int:
    return gpu_report.run(
        arguments.out, arguments.minutes, arguments.device, arguments.peers, arguments.sections
    )


if __name__ == "__main__":
    sys.exit(main())
