"""The baselines that the papers compare with: methods of continual learning, of unlearning, and training again."""
