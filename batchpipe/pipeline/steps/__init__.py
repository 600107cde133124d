"""The steps of the flow, one file each: what a step may touch is what its signature gives it."""
