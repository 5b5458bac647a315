"""Tests here run whole fleets."""

from fleet_fixtures import fleet

__all__ = ["fleet"]
