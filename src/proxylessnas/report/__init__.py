"""Drawings and plots of architectures, tables and runs."""
