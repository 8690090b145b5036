"""Pure functions from data to estimates with an interval and the name of the method."""
