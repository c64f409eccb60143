"""A long run of honest clients at full load: `make soak`."""
