"""The only folder that knows torch.export: from a module to a program that can be read and run."""
