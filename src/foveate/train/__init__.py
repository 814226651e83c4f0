"""Training under compression, on transformers' Trainer.

`objectives.parse_recipe` reads a recipe and `run.run` trains by it, as `foveate train` does. A loss of your own is a
subclass of `objectives.Objective`.
"""
