"""What only the study as a whole needs: provenance, stale results, verification, leases."""
