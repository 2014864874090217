"""Makes the environment of `make test-stack`: what the lock for GPUs has beyond the lock that is installed.

    python tools/stack.py FOLDER

The environment sees the packages of the running one. Parts that need an NVIDIA card are left out. PyTorch's CPU build
does not install triton, which Unsloth imports. Beside this build, torchvision's compiled operators do not load; the two
operators that its import requires are then declared without a kernel, since processors use none.
"""

import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GPU_ONLY = {"xformers"}
# The triton that PyTorch's CUDA build of requirements-torch.txt requires; wheels for Python 3.11 and 3.12, x86-64.
TRITON = """triton==3.7.1 \\
    --hash=sha256:6744957e9fd610a29680ec2346057d0c86948ed3812468670719f391e94b44a5 \\
    --hash=sha256:7e40869937a68206ec70d7f25bb7ec6433cb083f9135e1f36dbd318dc449a728"""
DECLARATION = """import torch
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def blocks(lock: str) -> dict[str, str]:
    """Return each `name==version` of a lock with its lines."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {part.split()[0]: part for part in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in part.split()[0]}


def main(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    (packages,) = folder.glob("lib/python*/site-packages")
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "parent.pth").write_text(line, encoding="utf-8")
    installed = blocks("requirements.lock")
    extra = {pin: lines for pin, lines in blocks("requirements-gpu.lock").items() if pin not in installed}
    requirements = folder / "requirements.txt"
    wanted = [lines for pin, lines in extra.items() if pin.partition("==")[0] not in GPU_ONLY]
    wanted += [TRITON] if importlib.util.find_spec("triton") is None else []
    requirements.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    options = ["--quiet", "--no-deps", "--require-hashes", "--requirement", requirements]
    subprocess.run([python, "-m", "pip", "install", *options], check=True)
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False).returncode:
        module = packages / "torchvision/__init__.py"
        module.write_text(DECLARATION + module.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run([python, "-c", "import torchvision"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
