"""Processes of a launch: devices, rendezvous, signals, and which of them writes."""
