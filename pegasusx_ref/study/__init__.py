"""Means to study the model: the specification by place, costs, a run as a table, and pictures of who sees whom."""
