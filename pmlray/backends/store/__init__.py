"""The record of truth on a shared folder: observations, leases, attempts."""
