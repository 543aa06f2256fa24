"""The training loop of a pack: optimiser steps, token weights, CUDA graphs and metrics."""
