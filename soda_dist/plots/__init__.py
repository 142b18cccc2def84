"""Plots: arrays in, image bytes out."""
