"""Enumerations that are given by name: one place for "must be one of ..., found ...".

This module knows no event, no order and no budget.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from accounting.errors import InvalidParameter

__all__ = ["Choice"]


class Choice(StrEnum):
    """An enumeration whose members may be given as strings."""

    @classmethod
    def of(cls, value: Self | str) -> Self:
        """The member with this name.

        Raises:
            InvalidParameter: for an unknown name; the message lists the known ones.
        """
        try:
            return cls(value)
        except ValueError:
            names = ", ".join(member.value for member in cls)
            raise InvalidParameter(
                f"{cls.__name__.lower()} must be one of {names}, found {value!r}"
            ) from None
