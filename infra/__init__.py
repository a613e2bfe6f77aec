"""What Anneal stands on: the spec, errors, files, the store, settings and child processes."""
