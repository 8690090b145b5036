"""The parts of a comparison: scores as columns, estimates, tests, win rates, strengths, gaps."""
