"""Record of truth in a shared folder: observations, leases, attempts."""
