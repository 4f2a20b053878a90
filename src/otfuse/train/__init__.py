"""Training of weights: finetuning on labelled data or text, on one process or many, resumed after any interruption."""
