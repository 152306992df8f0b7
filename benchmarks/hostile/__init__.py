"""Damaged and malicious input: images, requests, connections, checkpoints and operators."""
