"""PPO on text with its four models: actor, critic, reference and reward."""
