"""Data recipes: for each use of the guide a generator of rows, its parameters and its metric. See README.md."""
