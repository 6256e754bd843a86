"""Packaging: what is needed to run, and what is optional. Tool settings live in setup.cfg."""

from setuptools import setup

setup()
