"""Generated patients: who they are, their anatomy and tumours, and how a site scans them."""
