"""What a run needs when no data and no checkpoint are given: a synthetic question set and a tiny Qwen2-Audio."""
