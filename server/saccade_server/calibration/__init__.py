"""``saccade calibrate``: artifacts for the methods that need numbers found offline."""
