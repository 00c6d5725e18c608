"""What trains, scores or judges nets from outside: scores, sweeps, frontiers, checks."""
