"""The command line: `logits` measures, `report` renders what was measured."""

import argparse
import sys
from pathlib import Path

import torch

from bench import report
from bench.cases import OPTIONS, WORKS
from bench.environment import ROOT
from bench.run import Plan, run
from bench.shapes import SHAPES


def main() -> int:
    arguments = parser().parse_args()
    return arguments.command(arguments)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(required=True)

    logits = commands.add_parser("logits", help="measure the loss of given logits")
    logits.set_defaults(command=measure_logits)
    logits.add_argument("--device", choices=["cpu"], default="cpu")
    logits.add_argument("--threads", type=int, default=torch.get_num_threads())
    logits.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    logits.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16", "float16", "float64"]
    )
    logits.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    logits.add_argument("--options", nargs="+", choices=OPTIONS)
    logits.add_argument("--minutes", type=float, help="begin no shape after this long")
    logits.add_argument("--csv", type=Path, help="default: bench/results/<this machine>.csv")
    logits.add_argument("--no-memory", action="store_true", help="time only")

    render = commands.add_parser("report", help="write tables and plots from the committed results")
    render.set_defaults(command=render_report)
    render.add_argument(
        "--check", action="store_true", help="write nothing, fail if anything is stale"
    )
    return top


def measure_logits(arguments: argparse.Namespace) -> int:
    plan = Plan(
        device=arguments.device,
        shapes=[SHAPES[name] for name in arguments.shapes],
        dtypes=arguments.dtypes,
        works=arguments.works,
        options=arguments.options,
        minutes=arguments.minutes,
        weigh=not arguments.no_memory,
        threads=arguments.threads,
        csv=arguments.csv,
    )
    print(f"results in {run(plan)}", file=sys.stderr)
    return 0


def render_report(arguments: argparse.Namespace) -> int:
    stale = report.stale(ROOT) if arguments.check else report.write(ROOT)
    for path in stale:
        print(
            f"{'stale' if arguments.check else 'written'}: {path.relative_to(ROOT)}",
            file=sys.stderr,
        )
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
