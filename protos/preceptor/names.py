"""Names that stand where a tenant's would; no tenant of a file of tenants can have one of them."""

from __future__ import annotations

__all__ = ["OTHERS", "UNKNOWN", "UNNAMED"]

UNKNOWN = "(unknown)"  # who showed nothing that says who they are, or has said nothing yet
UNNAMED = "(unnamed)"  # conversations without a tenant's name, where no tokens are asked for
OTHERS = "(others)"  # those who came when there were as many as are told apart
