"""Reading files that may hold anything, and replacing files so that the old content survives every failure."""
