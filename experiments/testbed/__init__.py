"""The testbed: a small VGGT trained from scratch on rendered scenes, to test claims about trained attention."""
