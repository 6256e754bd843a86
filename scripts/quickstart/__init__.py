"""The quick start's corpus and checkpoint: written from templates, trained from scratch."""
