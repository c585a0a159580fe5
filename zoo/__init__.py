"""Pruned models, published and pulled: checkpoints without code, model cards, and the way to and from a hub.

A checkpoint is a folder that `torchorbit` loads by itself: it needs neither timm nor the code that made it.
"""
