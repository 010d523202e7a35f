"""The in-cluster loop: collect, analyse, optimise, actuate."""
