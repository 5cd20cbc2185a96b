"""Sources of images for a build: figshare, tables, class folders and generated patients."""
