"""`udaseg doctor`: problems of a data set, found without changing it."""
