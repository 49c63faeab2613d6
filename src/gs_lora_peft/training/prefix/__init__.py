"""The blocks below the lowest one that trains: run without graph, and once per sample where that is exact."""
