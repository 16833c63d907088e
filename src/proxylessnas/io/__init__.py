"""Small helpers at the edges: whole files, the console, being asked to stop."""
