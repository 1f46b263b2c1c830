"""unCLIP (DALL-E 2) and GLIDE: priors of embeddings, decoders, upsamplers, and what is done with them."""
