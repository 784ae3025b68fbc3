"""What the pack ships as workflows: examples and blueprints, and how they are laid out in ComfyUI's own page."""
