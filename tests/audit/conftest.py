"""Fixtures of the audit's tests."""

from digits_problem import problem, references

__all__ = ["problem", "references"]
