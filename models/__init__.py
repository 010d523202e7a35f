"""Performance mathematics: from a measured profile to the capacity of one replica."""
