"""Experiments on `meanfield` and `accel`: one claim, one file, one verdict; imported by nobody."""
