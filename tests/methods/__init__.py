"""Small but true methods that would break a protocol too narrow: the hard cases of the conformance table."""
