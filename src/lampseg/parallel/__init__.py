"""Executes a Plan on a group of processes."""
