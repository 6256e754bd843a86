"""Recipes: one YAML file, checked as a whole before anything is loaded."""
