"""The overfitting lab: the paper's claims measured on TinyWorld, with every baseline side by side."""
