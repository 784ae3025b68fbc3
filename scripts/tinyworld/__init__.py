"""How TinyWorld's base model is made: an autoencoder, then a text encoder and a UNet together, from nothing."""
