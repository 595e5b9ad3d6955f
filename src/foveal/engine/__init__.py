"""One call, `encode(batch)`, over the ways of running a backbone."""
