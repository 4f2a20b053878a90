"""`otfuse finetune`: a checkpoint trained further, and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otfuse.evaluate.run import find_device
from otfuse.io import given, writer
from otfuse.measure.clock import Announcing
from otfuse.train import progress as kept
from otfuse.train.finetune import finetune
from otfuse.train.options import FinetuneOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from otfuse.measure.clock import Progress


def finetune_checkpoint(
    model: str,
    data: str,
    out: Path,
    options: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    restart: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Train a checkpoint further and write the result; a run that was cut off goes on, wherever that was."""
    checked = FinetuneOptions(**options)
    if checked.device is not None:
        find_device(checked.device)
    written = not restart and kept.Progress.beside(out).saved and (out / "config.json").is_file()
    if not written:  # else the run was killed between writing its result and its last act
        writer.check_target(out)
    tell = progress or (lambda _stage, _done, _total: None)
    with Announcing(tell).stage("load"):
        loaded = given.load([model], allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        examples = given.dataset(data, loaded)
    with given.told_of(model, data):
        trained = finetune(
            loaded.modules[0],
            examples,
            options=checked,
            out=out,
            on_step=lambda step, steps, _loss: tell("finetune", step, steps),
            restart=restart,
            **given.special_tokens(loaded),
        )
    if trained.is_main and not (written and writer.holds(out, trained.model)):
        writer.write_checkpoint(out, trained.model, loaded.checkpoints[0])
    trained.finish()
    return {"model": model, "out": str(out), "steps": trained.steps, "examples": trained.examples, "loss": trained.loss}
