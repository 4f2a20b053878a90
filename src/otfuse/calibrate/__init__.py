"""Layers solved again in closed form, from what two or more models give on the same unlabelled inputs."""
