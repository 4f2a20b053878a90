"""Where the functions stand that the commands call."""

STANDS = {
    "fuse_checkpoints": "otfuse.pipeline",
    "inspect": "otfuse.commands.inspect",
    "evaluate_checkpoints": "otfuse.commands.evaluate",
    "finetune_checkpoint": "otfuse.commands.finetune",
}
