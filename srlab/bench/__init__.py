"""The speed of this machine: crops, training steps, upscaling."""
