"""Supervised fine-tuning on audio."""
