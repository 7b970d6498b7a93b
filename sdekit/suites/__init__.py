"""The suites that ship: studies of sdekit's samplers beside those of other libraries."""

from sdekit.suites.studies import analytic, digits, mnist, patches
from sdekit.suites.suite import SUITES, Suite, find

__all__ = ["SUITES", "Suite", "analytic", "digits", "find", "mnist", "patches"]
