"""Tokenizer and model of a recipe: a fresh model for every trial, built from its values."""
