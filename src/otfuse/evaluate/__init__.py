"""How good a model is on data: loss, accuracy, perplexity, of one model or of several together."""
