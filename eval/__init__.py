"""Evaluation on MMAU and on the embedded question set: generate, match, score, report."""
