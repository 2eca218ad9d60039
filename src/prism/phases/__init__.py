"""What one phase alone needs, a room each: its methods, its figures and its exercises."""
