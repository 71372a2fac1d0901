"""Verification of the backward pass: the golden gradients, computed on arrays that know their rounding errors."""
