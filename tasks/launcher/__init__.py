"""Starting ranks, watching them, GPUs and what a training will take. Without torch."""
