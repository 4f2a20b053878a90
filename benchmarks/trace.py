"""What tracing and the gate cost, each in a process of its own with one thread: seconds of processor time, memory above importing.

    python benchmarks/trace.py [--only NAME] [--layers 4 8 16 32 64]

Prints a table: an 8B configuration on the meta device; a model of 250M parameters, randomised (verify) and as it is (the
gate of `fuse`); narrow models of so many layers, for which the seconds per layer should not grow. The models are random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
MIDDLE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False}  # fmt: skip
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def jobs(layers: list[int]) -> dict[str, dict[str, Any]]:
    """What is done by name: the config, the type and the device of the model, and the task."""
    found: dict[str, dict[str, Any]] = {
        "8B, trace": {"config": LARGE, "device": "meta", "task": "trace"},
        "250M float32, verify": {"config": MIDDLE, "task": "verify"},
        "250M float32, trace and gate": {"config": MIDDLE, "task": "gate"},
        "250M bfloat16, trace and gate": {"config": MIDDLE, "task": "gate", "dtype": "bfloat16"},
    }
    for n in layers:
        config = NARROW | {"num_hidden_layers": n}
        found |= {f"{n} layers, {task}": {"config": config, "task": task} for task in ("trace", "gate alone")}
    return found


def work(job: dict[str, Any]) -> None:
    """In a process of its own: do one job and print what it cost as JSON."""
    import torch
    import transformers

    from otfuse.flow.proof.gate import verify_graph
    from otfuse.fusion.differences import described
    from otfuse.fusion.sides import Parent, check, traced, workable
    from otfuse.program.export import stored
    from otfuse.program.weights import Weights

    loaded = time.process_time()
    torch.manual_seed(0)
    with torch.device(job.get("device", "cpu")):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**job["config"])).eval()
    model = model.to(getattr(torch, job.get("dtype", "float32")))
    began, before = time.process_time(), _peak()
    model = model if job["task"] == "trace" else workable(model)
    held = model.state_dict(keep_vars=True)
    parent = Parent("model", model, Weights({name: held[name] for name in stored(model)[0]}), described(model, "model"))
    side = traced(parent, None)
    if job["task"] == "gate alone":
        began = time.process_time()
    if job["task"] in ("verify", "gate alone"):
        verify_graph(model, side.program, side.graph, side.weights).require(1e-8)
    elif job["task"] == "gate":
        check([parent], [side], 0)
    print(json.dumps({"importing": loaded, "seconds": time.process_time() - began, "mib": _peak() - before}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure those whose name holds this")
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 8, 16, 32, 64])
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        work(json.loads(given.job))
        return
    print("| | importing, s | then, s | above the model, MiB |\n|---|---|---|---|", flush=True)
    for name, job in jobs(given.layers).items():
        if given.only in name:
            line = [sys.executable, __file__, "--job", json.dumps(job)]
            ran = subprocess.run(line, env=os.environ | SINGLE, stdout=subprocess.PIPE, text=True, check=True)
            cost = json.loads(ran.stdout.splitlines()[-1])
            print(f"| {name} | {cost['importing']:.1f} | {cost['seconds']:.1f} | {cost['mib']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
