"""Metrics with their intervals. Without torch."""
