"""`make gpu-peers`: wheels of the other kernels, for a machine that has a GPU and no network.

They are for that machine, not for this one, and in folders small enough to be sent one by one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.environment import ROOT

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST_BYTES = 60 << 20  # of a folder

# Without their dependencies, which would be another torch: what these need and a torch 2.11 with
# NumPy does not bring is listed with them. Not apex: the package of that name is something else.
WANTED = (
    *("liger-kernel", "cut-cross-entropy", "flash-attn", "fla-core", "einops"),
    *("quack-kernels", "apache-tvm-ffi", "torch-c-dlpack-ext", "protobuf"),
    *("nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-base", "nvidia-cutlass-dsl-libs-core"),
    "nvidia-cutlass-dsl-libs-cu13",
    *("cuda-tile", "nvidia-cuda-tileiras==13.4.*"),
    *("flag-gems", "sqlalchemy", "pyyaml", "packaging"),
    *("transformer-engine-torch", "mmcv"),  # the rest of Transformer Engine needs this
    "torchvision==0.26.*",  # that of torch 2.11
    *("tokenizers", "tqdm"),  # for the model that is trained
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_peers", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "peers")
    parser.add_argument(
        "--cut", action="store_true", help="cut into pieces what alone is too large for a folder"
    )
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for requirement in WANTED:
            if reason := download(requirement, Path(folder)):
                print(f"not to be had: {requirement}: {reason}")
        if arguments.cut:
            for path in list(Path(folder).iterdir()):
                cut(path, MOST_BYTES)
        sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
        parts, too_large = partition(sizes, MOST_BYTES)
        for name in too_large:
            print(f"left out: {name}: {sizes[name] / 2**20:.0f} MiB")
        for number, names in enumerate(parts, 1):
            part = out / f"part-{number}"
            part.mkdir()
            for name in names:
                Path(folder, name).rename(part / name)
            mebibytes = sum(sizes[name] for name in names) / 2**20
            print(f"{part}: {len(names)} wheels, {mebibytes:.1f} MiB")
    return 0


def download(requirement: str, folder: Path) -> str:
    """Fetch the wheel; returns why there is none."""
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, *platforms]
    finished = subprocess.run(
        [*command, "--dest", folder, requirement], capture_output=True, text=True
    )
    return last_line(finished.stderr) if finished.returncode else ""


def partition(sizes: Mapping[str, int], most: int) -> tuple[list[list[str]], list[str]]:
    """Names in groups that together are no larger than `most`, and the names that alone are."""
    too_large = [name for name, size in sizes.items() if size > most]
    parts: list[list[str]] = []
    left: list[int] = []
    for name in sorted(sizes.keys() - too_large, key=lambda name: (-sizes[name], name)):
        fitting = (part for part, room in enumerate(left) if sizes[name] <= room)
        part = next(fitting, len(parts))
        if part == len(parts):
            parts.append([])
            left.append(most)
        parts[part].append(name)
        left[part] -= sizes[name]
    return parts, too_large


def cut(path: Path, most: int) -> None:
    """Put numbered pieces in the place of a file that is larger than `most`."""
    if path.stat().st_size <= most:
        return
    with path.open("rb") as file:
        for number, piece in enumerate(iter(lambda: file.read(most), b"")):
            path.with_name(f"{path.name}.{number}").write_bytes(piece)
    path.unlink()


def joined(folder: Path, into: Path) -> list[Path]:
    """The files that were cut, wherever below a folder their pieces are, whole again."""
    pieces: dict[str, dict[int, bytes]] = {}
    for path in folder.rglob("*.whl.*"):
        pieces.setdefault(path.stem, {})[int(path.suffix[1:])] = path.read_bytes()
    for name, numbered in pieces.items():
        (into / name).write_bytes(b"".join(numbered[number] for number in sorted(numbered)))
    return [into / name for name in pieces]


def search_path(folder: Path, into: Path) -> str:
    """What PYTHONPATH has to be for the packages in a folder: wheels, or unpacked as they are.

    Wheels, wherever below it, are installed `into` a folder of their own.
    """
    with tempfile.TemporaryDirectory() as whole:
        wheels = [*folder.resolve().rglob("*.whl"), *joined(folder, Path(whole))]
        if wheels:
            shutil.rmtree(into, ignore_errors=True)
            install(wheels, into)
            folder = into
    return os.pathsep.join([str(folder.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])


def install(wheels: Sequence[Path], into: Path) -> None:
    """All at once: some share a folder, and pip leaves one alone that is already there."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    finished = subprocess.run([*command, "--target", into, *wheels], capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"no peers: {last_line(finished.stderr)}")
    # Python reads the .pth files of a folder that is made known so, not of one on PYTHONPATH.
    made_known = "import os, site\n\nsite.addsitedir(os.path.dirname(__file__))\n"
    (into / "sitecustomize.py").write_text(made_known)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].removeprefix("ERROR: ") if lines else text.strip()


if __name__ == "__main__":
    sys.exit(main())
