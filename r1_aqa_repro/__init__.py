"""Open reproduction of R1-AQA: GRPO for audio question answering with Qwen2-Audio (arXiv 2503.11197)."""

__version__ = "0.1.0"
