"""Evaluation harness for preference-optimised language-model checkpoints."""

__version__ = "0.1.0"
