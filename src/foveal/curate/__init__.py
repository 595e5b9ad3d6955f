"""From a raw pile of images to a training set: audit, deduplicate, retrieve, balance; see docs/curate.md."""
