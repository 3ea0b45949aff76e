"""`python -m torchce_cuda`: what this installation is, for a bug report."""

import platform

import torch

from . import _C, __version__


def report() -> dict[str, str]:
    """Versions, the instruction set in use and whether the CUDA kernels are built, by name."""
    info = _C.build_info()
    return {
        "torchce_cuda": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "compiler": info["compiler"],
        "CPU kernels": info["isa"],
        "CPU threads": str(torch.get_num_threads()),
        "CUDA kernels": "built" if info["cuda"] else "not built",
        "CUDA of torch": torch.version.cuda or "none",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


if __name__ == "__main__":
    for name, value in report().items():
        print(f"{name:14} {value}")
