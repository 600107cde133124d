"""Settings, read once at the edge, the values that a site's framework gives, and limits that follow from them."""
