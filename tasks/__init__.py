"""The seven steps of a training, one file each."""
