"""Hyper-parameters for the RL Zoo."""
