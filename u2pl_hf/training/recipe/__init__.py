"""What a run is asked to do: arguments, and recipes of them."""
