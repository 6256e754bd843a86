"""The trainer and what it trains a trial with; the only folder that overrides the Trainer."""
