"""From image numbers to micro-batches of views: order, decoding, crops, colours, masks."""
