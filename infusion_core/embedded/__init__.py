"""The embedded host: diffusers models and TinyWorld, needing no ComfyUI. Install the extra ``standalone``."""
