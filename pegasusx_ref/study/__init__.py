"""Means to study the model: the specification by place, what each part costs, and a run as a table."""
