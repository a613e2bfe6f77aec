"""Rows: from where they come to splits that can be trained on. Without torch."""
