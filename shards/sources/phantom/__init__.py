"""Generated patients: head anatomy, tumours, simulated scanners, and the source that renders their slices."""
