"""What is read: questions, conversations, clips, prompts, answers."""
