"""The command line: anneal up, train, predict and the rest."""
