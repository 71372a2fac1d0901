"""The check of each operation: its expected result, the errors that rounding may leave, the comparison."""
