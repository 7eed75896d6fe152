"""Distillation: raw detections to secret key, as sans-IO machines for Alice and for Bob."""
