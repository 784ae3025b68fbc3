"""``infusion lab --model``: the paper's protocol with real weights and published datasets, for whoever has them."""
