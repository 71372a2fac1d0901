"""Tools to study the model: the specification by place, costs, traces as tables, pictures and pages of attention."""
