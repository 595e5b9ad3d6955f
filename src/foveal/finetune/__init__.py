"""Fine-tuning of a backbone together with a head: settings, crops, network, and the loop around them."""
