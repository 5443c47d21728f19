"""What happened after: drift reports, outcomes and live figures."""
