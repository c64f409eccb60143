"""The laboratory: who wants to see, in every frame and message, what passes. Costs nothing where nobody looks."""
