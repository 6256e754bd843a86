"""The final model: trained again with the values that a search has found, measured and saved."""
