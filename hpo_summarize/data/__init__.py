"""Dialogues and summaries: found, read, checked and split."""
