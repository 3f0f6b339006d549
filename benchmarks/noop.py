"""The least that a job can be: what RQ's own workers perform, in a module that is imported in no time."""

from __future__ import annotations


def nothing(number: int) -> int:
    return number
