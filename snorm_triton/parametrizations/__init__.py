"""What an access to a constrained tensor computes: one file a constraint, and what all share."""
