"""The job of every benchmark here, and how a process is measured. Imports nothing heavy: see :func:`measure`.

The job: two vision transformers of 6.3 million parameters (7 blocks of 384 units, 12 heads, inner width 384, images of
32 x 32 in patches of 4, so 65 tokens), drawn from two seeds, and normal images. The architecture is that of the
checkpoints released with the published code; cost does not depend on what the weights have learned, except that
Sinkhorn takes more or fewer steps.

    python benchmarks/job.py FOLDER      # writes anchor/, source/, images-200.npz, images-2000.npz
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEEDS = {"anchor": 1, "source": 2, "images": 3}
ARCHITECTURE = {
    "image_size": 32, "patch_size": 4, "hidden_size": 384, "num_hidden_layers": 7, "num_attention_heads": 12,
    "intermediate_size": 384, "num_labels": 10, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one process took: wall-clock and processor seconds (user and system), peak resident memory in MiB."""

    wall: float
    cpu: float
    peak_mib: float

    def to_dict(self) -> dict[str, float]:
        """Rounded for JSON."""
        return {key: round(value, 3) for key, value in asdict(self).items()}


def measure(command: list[str], *, threads: int | None = None) -> tuple[Cost, str]:
    """Runs ``command`` to its end; its cost and what it printed. RuntimeError with its stderr if it fails.

    The kernel carries the peak of the process that forked over to the child, so the caller must stay small itself:
    no torch here, and ``wait4`` gives the figures of this child alone.
    """
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, env=environment, text=True)
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if child.returncode:
            err.seek(0)
            msg = f"{' '.join(command)} failed ({child.returncode}): {err.read()[-2000:]}"
            raise RuntimeError(msg)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), printed


def median(costs: list[Cost]) -> Cost:
    """The median of each figure by itself."""
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in ("wall", "cpu", "peak_mib")))


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").split(":", 1)[1].strip()
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "pot", "numpy")}
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **packages,
    }


def prepare(folder: Path) -> None:
    """Makes the job's models and images in ``folder`` in a process of its own, unless they are there."""
    if not (folder / "images-2000.npz").exists():
        measure([sys.executable, __file__, str(folder)])


def _make(folder: Path) -> None:
    import numpy as np
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("anchor", "source"):
        torch.manual_seed(SEEDS[name])
        model = ViTForImageClassification(ViTConfig(**ARCHITECTURE))
        with torch.no_grad():  # gains and biases as different as those of a trained model
            for tensor_name, tensor in model.named_parameters():
                if tensor.ndim == 1 or "token" in tensor_name or "position" in tensor_name:
                    tensor.add_(torch.randn_like(tensor) * 0.1)
        model.save_pretrained(folder / name)
    chance = np.random.default_rng(SEEDS["images"])
    for count in (200, 2000):
        np.savez(
            folder / f"images-{count}.npz", pixel_values=chance.standard_normal((count, 3, 32, 32), dtype=np.float32)
        )


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
