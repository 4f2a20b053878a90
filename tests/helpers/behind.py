"""Where the functions stand that the commands call."""

STANDS = {
    "fuse_checkpoints": "otfuse.pipeline",
    "inspect": "otfuse.commands.inspect",
    "evaluate_checkpoints": "otfuse.commands.evaluate",
    "barrier_of_checkpoints": "otfuse.commands.barrier",
    "sweep_checkpoints": "otfuse.commands.sweep",
    "finetune_checkpoint": "otfuse.commands.finetune",
}
