"""`accelerate launch -m otfuse.cli finetune ...`: the same commands on several processes."""

from __future__ import annotations

from otfuse.cli import main

main()
