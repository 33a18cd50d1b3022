"""`udaseg prepare`: from files as downloaded to an indexed data set."""
