"""`DagModule` and its vertices: what a graph is, how it runs, how it is saved and loaded."""
