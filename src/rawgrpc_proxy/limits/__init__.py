"""How many calls there may be at a time. Pure of connections; whoever lets calls go on asks."""
