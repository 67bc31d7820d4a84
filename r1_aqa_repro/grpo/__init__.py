"""GRPO with one computation of the prompt and its audio a group."""
