"""otfuse: align the units of trained transformers with optimal transport, then average them into one model."""
