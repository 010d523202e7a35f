"""From a system to a proven allocation."""
