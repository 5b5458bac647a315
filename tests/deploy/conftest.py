"""Tests here run whole fleets."""

from fleet_fixtures import fleet, pytest_configure

__all__ = ["fleet", "pytest_configure"]
